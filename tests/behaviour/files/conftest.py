"""Which files of the host a test sees, what it can write to, and what it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test of this directory; pytest calls the hook for no other."""
    item.add_marker("kernel")
