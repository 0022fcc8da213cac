"""What behaviour tests of several topics share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.commands import Commands
from helpers.networks import Host, host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """Runs of ``nsisolate``, as the user who runs the tests."""
    return Commands(path=tmp_path)


@pytest.fixture
def place() -> Iterator[Host]:
    """A network namespace that stands for the host."""
    with host() as one:
        yield one
