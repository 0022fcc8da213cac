"""Define a snapshot as a value: the fixtures and tests that it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec


class Snapshot:
    """One snapshot. It has no state: `runner.snapshots.Snapshots` knows where it stands.

    Attributes:
        number: its index among the session's.
        items: the tests that are forks of it, in order.
        last: the last test that needs it, those of the snapshots inside it included.
        spec: what its tests ask for, but for limits.
        parent: the snapshot that it is a fork of itself.
        plan: of its own sandbox.
        item_plan: of the sandboxes of its tests.
    """

    def __init__(self, number: int, items: list[int], spec: Spec, parent: Snapshot | None) -> None:
        self.number = number
        self.items = items
        self.last = items[-1]
        self.spec = spec
        self.parent = parent
        self.plan = self.item_plan = -1

    def build_by(self, plan: int, item_plan: int) -> None:
        """Note the numbers of the plans: of its own sandbox, and of those of its tests."""
        self.plan, self.item_plan = plan, item_plan

    def needed_until(self, item: int) -> None:
        """Note that *item* needs it, directly or by a snapshot inside it."""
        self.last = max(self.last, item)

    @property
    def level(self) -> int:
        """How many snapshots it is inside of."""
        return 0 if self.parent is None else self.parent.level + 1

    @property
    def chain(self) -> list[Snapshot]:
        """Itself and those it is inside of, the narrowest first."""
        return [self] + (self.parent.chain if self.parent is not None else [])
