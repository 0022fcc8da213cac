"""What tests share: runs of a real pytest, the state of the host, terminals, networks and samples.

`tests` is on the import path (``pythonpath`` in pyproject.toml), so that a test file in any
directory says ``from helpers.run import Run``.
"""

from __future__ import annotations

import pytest

# Before any of them is imported: pytest then explains the failed asserts of these modules too.
pytest.register_assert_rewrite(
    "helpers.commands",
    "helpers.refusals",
    "helpers.run",
    "helpers.screens",
    "helpers.terminals",
)
