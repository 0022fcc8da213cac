"""``python -m pytest_nsisolate`` is the ``nsisolate`` command."""

from .cli import main

raise SystemExit(main())
