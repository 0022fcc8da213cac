"""Other people's plugins, and pytest's own, with isolated tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test of this directory; pytest calls the hook for no other."""
    item.add_marker("kernel")
