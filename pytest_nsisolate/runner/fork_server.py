"""Where test processes come from: the keeper and the template of the session, or a snapshot.

A snapshot is asked for sandboxes and forks just as these are: the PID 1 of its own
sandbox builds those of its tests inside, and its process is their template.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.sandbox.client import Maker

if TYPE_CHECKING:
    import socket

    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec
    from pytest_nsisolate.testprocess.template import Template

    from .sandbox_pool import Pool
    from .test_process import TestProcess


class ForkServer:
    """Who builds the sandboxes of some tests, and whose forks they are.

    Args:
        snapshot: None for that of the session.
    """

    def __init__(
        self,
        maker: Maker | None,
        template: Template,
        pool: Pool | None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.maker = maker
        self.template = template
        self.pool = pool
        self.snapshot = snapshot

    def close(self) -> None:
        """Of a snapshot: let go of it; its processes end by the end of its sandbox."""
        if self.pool is not None:
            self.pool.close()
        if self.maker is not None:
            self.maker.socket.close()
        self.template.socket.close()


class Snapshot:
    """One snapshot: what it is for, and, while tests need it, where it stands.

    Attributes:
        number: its index among the session's.
        items: the tests that are forks of it, in order.
        last: the last test that needs it, those of the snapshots inside it included.
        spec: what its tests ask for, but for limits.
        parent: the snapshot that it is a fork of itself.
        plan: of its own sandbox.
        item_plan: of the sandboxes of its tests.
        process: its process.
        source: where its tests come from, once it has set up.
        broken: how it ended, if not by being told to.
        told: what it told of its setup, for the first test to report.
    """

    def __init__(self, number: int, items: list[int], spec: Spec, parent: Snapshot | None) -> None:
        self.number = number
        self.items = items
        self.last = items[-1]
        self.spec = spec
        self.parent = parent
        self.plan = self.item_plan = -1
        self.reset()

    def reset(self) -> None:
        """There is none: the next test that needs it has it made."""
        self.process: TestProcess | None = None
        self.source: ForkServer | None = None
        self.broken: Outcome | None = None
        self.ending = False
        self.setup_frames: deque[tuple[str, Any]] = deque()

    @property
    def tells(self) -> bool:
        """Whether what it has told can be reported: it has set up, or waits for the terminal."""
        waits = self.process is not None and self.process.test.debugged
        return self.source is not None or waits

    @property
    def level(self) -> int:
        """How many snapshots it is inside of."""
        return 0 if self.parent is None else self.parent.level + 1

    @property
    def chain(self) -> list[Snapshot]:
        """Itself and those it is inside of, the narrowest first."""
        return [self] + (self.parent.chain if self.parent is not None else [])


class InnerMaker(Maker):
    """The PID 1 of a snapshot's sandbox, which is told a plan when it is first needed."""

    def __init__(self, channel: socket.socket, plans: list[Plan]) -> None:
        super().__init__(channel)
        self._all = plans
        self._known: set[int] = set()

    def ask(self, number: int, plan: int) -> None:
        if plan not in self._known:
            self._known.add(plan)
            self.add_plan(plan, self._all[plan])
        super().ask(number, plan)
