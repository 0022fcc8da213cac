"""``python -m pytest_nsisolate`` is the ``nsisolate`` command."""

from .cli.main import main

raise SystemExit(main())
