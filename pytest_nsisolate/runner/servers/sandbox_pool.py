"""Hold the sandboxes that are ready or requested from the keeper.

Guarantees: where namespaces or memory are used up, a request is made again: as long as
tests that run may give theirs back, and then for a while, since the kernel frees late;
what is ready and not yet needed makes room for it. `Pool.close` ends every sandbox that
was not taken.
"""

from __future__ import annotations

import errno
import time

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.sandbox.client import KeeperGone, Maker, Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_nsisolate.runner.timeline import Watch

#: How often and how long, in seconds, to wait for namespaces to become free.
_RETRIES, _RETRY_AFTER = 100, 0.05
_USED_UP = frozenset({errno.ENOSPC, errno.EAGAIN, errno.ENOMEM, errno.EUSERS})


class Pool:
    """Sandboxes by the number of the plan they were built by.

    Args:
        keeper: builds them; whoever made it ends it.
        numbers: gives each a number of its own.
        watch: records what is requested and made.
    """

    def __init__(self, keeper: Maker, numbers: Iterator[int], watch: Watch | None = None) -> None:
        self.keeper = keeper
        self._watch = watch
        self._numbers = numbers
        self._ready: dict[int, list[Sandbox]] = {}
        self._asked: dict[int, int] = {}  # number of a request -> plan
        self._retry: list[tuple[float, int]] = []
        self._retries: dict[int, int] = {}

    def take(self, plan: int) -> Sandbox | None:
        """Take a sandbox of *plan*, if one is ready; the caller then owns it."""
        ready = self._ready.get(plan)
        return ready.pop(0) if ready else None

    def want(self, wanted: dict[int, int]) -> None:
        """Ask for what is missing: *wanted* says how many by each plan are needed."""
        for plan, count in wanted.items():
            there = len(self._ready.get(plan, ()))
            there += sum(1 for one in self._asked.values() if one == plan)
            there += sum(1 for _, one in self._retry if one == plan)
            for _ in range(count - there):
                self._ask(plan)

    def _ask(self, plan: int) -> None:
        number = next(self._numbers)
        try:
            self.keeper.ask(number, plan)
        except KeeperGone:
            return  # its socket says so to the loop as well
        self._asked[number] = plan
        if self._watch is not None:
            self._watch.asked(number)

    def receive(self, *, busy: bool = False) -> tuple[int, StageError] | None:
        """Take in the keeper's next message; return a failed plan and why, if it reports one.

        Args:
            busy: whether tests run in sandboxes, which come back.

        Raises:
            KeeperGone: there will be no message.
        """
        kind, value, fds = self.keeper.receive()
        if kind == "made":
            self._retries.pop(self._made(value, fds), None)
        elif kind == "failed" and value[0] in self._asked:
            plan, error = self._asked.pop(value[0]), StageError(*value[1:])
            tries = self._retries.get(plan, 0)
            if error.errno not in _USED_UP or tries >= _RETRIES:
                return plan, error
            if not busy and not self._make_room(plan):
                self._retries[plan] = tries + 1
            self._retry.append((time.monotonic() + _RETRY_AFTER, plan))
        return None

    def _make_room(self, plan: int) -> bool:
        """End a ready sandbox of another plan than *plan*; return whether there was one."""
        for other, ready in self._ready.items():
            if other != plan and ready:
                ready.pop().end()
                return True
        return False

    def _made(self, number: int, fds: list[int]) -> int:
        plan = self._asked.pop(number)
        self._ready.setdefault(plan, []).append(Sandbox(number, fds[0], fds[1]))
        if self._watch is not None:
            self._watch.made(number)
        return plan

    def moments(self) -> list[float]:
        """Return the moments when `ask_again` has something to do, by the monotonic clock."""
        return [moment for moment, _ in self._retry]

    def ask_again(self, now: float) -> None:
        """Make the requests again whose time has come."""
        for moment, plan in self._retry[:]:
            if now >= moment:
                self._retry.remove((moment, plan))
                self._ask(plan)

    def prove(self) -> dict[int, StageError]:
        """Wait for all that was requested, to be used later; return the plans that failed.

        That namespaces are used up is no failure of a plan where another one has got some.

        Raises:
            KeeperGone: the keeper ended.
            StageError: the keeper itself failed.
        """
        failed: dict[int, StageError] = {}
        while self._asked:
            kind, value, fds = self.keeper.receive()
            if kind == "made":
                self._made(value, fds)
            elif value[0] in self._asked:
                failed[self._asked.pop(value[0])] = StageError(*value[1:])
            else:
                raise StageError(*value[1:])
        if any(self._ready.values()):
            failed = {plan: one for plan, one in failed.items() if one.errno not in _USED_UP}
        return failed

    def descriptors(self) -> list[int]:
        """Return the descriptors of the sandboxes that are ready."""
        ready = [one for sandboxes in self._ready.values() for one in sandboxes]
        return [fd for one in ready for fd in (one.pidfd, one.control)]

    def close(self) -> None:
        """End what is ready, and forget what was requested."""
        for sandboxes in self._ready.values():
            for sandbox in sandboxes:
                sandbox.end()
        self._ready.clear()
        self._asked.clear()
        self._retry.clear()
