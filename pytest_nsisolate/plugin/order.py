"""Know the order of a session's isolated tests: what comes next, and what shares a process.

A worker of xdist knows no further than the test after the current one.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any

from . import grouping

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_nsisolate.runner.snapshot import Snapshot
    from pytest_nsisolate.spec.spec import Spec

    from .missing import Missing


class Order:
    """See the module.

    Args:
        specs: of the isolated tests, by index of the item; others may be taken out later.
        missing: which of them can't be isolated.
        tree: the snapshots, if any test is to be a fork of one.
    """

    def __init__(
        self,
        session: pytest.Session,
        specs: dict[int, Spec],
        missing: Missing,
        tree: grouping.Tree | None,
    ) -> None:
        self._session = session
        self._specs = specs
        self._missing = missing
        self._snapshots = tree.of if tree is not None else {}
        self._indexes: dict[pytest.Item, int] = {
            item: index for index, item in enumerate(session.items)
        }
        self._sorted = sorted(specs)
        self._worker = hasattr(session.config, "workerinput")
        self._current = -1
        self._next: int | None = None

    def begin(self, item: pytest.Item, nextitem: pytest.Item | None) -> int:
        """Note the current test and, if known, the one after it; return the item's index."""
        self._current = self._indexes[item]
        self._next = self._indexes.get(nextitem) if nextitem is not None else None
        return self._current

    def isolates(self, item: pytest.Item) -> bool:
        """Return whether *item* runs in a process of its own."""
        return self._indexes.get(item, -1) in self._specs

    @property
    def all_isolated(self) -> bool:
        """Whether no test runs in the runner."""
        return len(self._specs) == len(self._indexes)

    def take_out(self, items: list[int]) -> None:
        """Run these in the runner."""
        for item in items:
            del self._specs[item]
        self._sorted = sorted(self._specs)

    def upcoming(self, item: int) -> Iterator[tuple[int, bool]]:
        """Yield the isolated tests after *item*, and whether the runner's own tests come before."""
        if self._worker:
            # Which test comes after the next one is not known yet.
            if self._next is not None and self._next in self._specs:
                yield self._next, False
            return
        before = item
        for position in range(bisect.bisect_right(self._sorted, item), len(self._sorted)):
            index = self._sorted[position]
            if self._missing.error(index) is None:
                yield index, index != before + 1
            before = index

    def follows(self, item: int) -> int | None:
        """Return the item after *item* in the same process: -1 for none, None if unknown."""
        if self._specs[item].scope == "function":
            return -1
        after: int | None = item + 1
        if self._worker:
            if item != self._current:
                return None
            after = self._next
        if after is None or not grouping.together(self._session.items, self._specs, item, after):
            return -1
        return after

    def over(self, item: int) -> list[Snapshot]:
        """Return the snapshots, the narrowest first, that no test after *item* needs."""
        of = self._snapshots
        chain = of[item].chain if item in of else []
        if not self._worker:
            return [one for one in chain if one.last == item]
        kept = of[self._next].chain if self._next in of else []
        return [one for one in chain if one not in kept]

    def next_in_runner(self, item: pytest.Item) -> pytest.Item | None:
        """Return the test that the runner itself will run after *item*, as far as it is known.

        A worker of xdist keeps the session's fixtures and nothing else.
        """
        if self._worker:
            session: Any = self._session
            return session  # type: ignore[no-any-return]
        for index in range(self._indexes[item] + 1, len(self._session.items)):
            if index not in self._specs:
                return self._session.items[index]
        return None
