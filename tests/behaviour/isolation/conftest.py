"""What an isolated test has of its own, and how it begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test of this directory, unless it says that it depends on the kernel."""
    if item.get_closest_marker("kernel") is None:
        item.add_marker("python")
