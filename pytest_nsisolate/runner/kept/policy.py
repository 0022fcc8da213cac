"""Decide which sandboxes outlive the session, and hand them over to their custodian.

Imported only with ``--ns-keep``. A sandbox that is to be kept is not ended with its test: it
stands, with all that the test left running in it, until the session ends, and then passes to
a process of its own (`custodian`). Until then it ends with the session, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux.syscalls import getcwd
from pytest_nsisolate.core.outcome import Kind
from pytest_nsisolate.core.text import duration
from pytest_nsisolate.sandbox.client import KeeperGone

from . import custodian, registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.runner.test_process import TestProcess
    from pytest_nsisolate.sandbox.client import Keeper, Sandbox
    from pytest_nsisolate.sandbox.operations.plan import Plan

#: How many sandboxes a session keeps: each holds memory.
MOST = 16
#: How many tests that are not kept are named for each reason.
_NAMED = 5


class Kept(NamedTuple):
    """A sandbox that is to outlive the session.

    Attributes:
        groups: directories of the control groups that it is in.
    """

    id: str
    sandbox: Sandbox
    init: registry.Process
    flags: int
    tests: tuple[str, ...]
    why: str
    environment: dict[str, str]
    groups: tuple[str, ...]


class Keeping:
    """See the module.

    Args:
        policy: "failed", or "all".
        limit: how long they live after the session, in seconds.
        most: how many are kept.
        nodeids: the tests' names, by index of the item.
    """

    def __init__(self, policy: str, *, limit: float, most: int, nodeids: Mapping[int, str]) -> None:
        self.policy = policy
        self._limit = limit
        self._most = most
        self._nodeids = nodeids
        self._environment = dict(os.environ)
        self._directory = getcwd()
        self._kept: list[Kept] = []
        self._dropped: dict[str, list[str]] = {}  # why -> tests
        self._lines: list[str] = []

    def wants(self, process: TestProcess, *, failed: bool) -> bool:
        """Return whether the sandbox of *process* is to be kept, and can be."""
        if process.serves is not None or not (failed or self.policy == "all"):
            return False
        return not self._obstacle(process)

    def _obstacle(self, process: TestProcess) -> str:
        """Return why the sandbox of *process* can't be kept, "" if it can."""
        if process.plan is None:
            return "without namespaces there is no sandbox"
        if process.snapshot is not None:
            return "the sandbox of a test with a snapshot lies in the snapshot's, and ends with it"
        if process.runaway:
            return "its processes, hundreds of them, were killed when its time was over"
        if len(self._kept) >= self._most:
            return f"no more than {self._most} are kept"
        return ""

    def consider(
        self, process: TestProcess, outcome: Outcome, plans: list[Plan], *, failed: bool
    ) -> None:
        """Take the sandbox of *process* at its end, before it is released, if it is kept."""
        failed = failed or outcome.kind is not Kind.COMPLETED
        if process.serves is not None or not (failed or self.policy == "all"):
            return
        if outcome.kind is Kind.SANDBOX_FAILED or not process.begin:
            return  # nothing has run there
        test = self._nodeids[process.test.item]
        why = self._obstacle(process)
        sandbox, init = process.sandbox, None
        if not why and sandbox is not None:
            pid = sandbox.init_pid()
            init = registry.process(pid) if pid is not None else None
            if init is None:
                why = "its PID 1 has ended"
        if why or sandbox is None or init is None or process.plan is None:
            self._dropped.setdefault(why, []).append(test)
            return
        # Its report is here; it would end by itself, or with the template.
        if process.server is not None:
            with contextlib.suppress(OSError):
                process.server.template.kill(process.number, signal.SIGKILL)
        groups = process.budget.keep() if process.budget is not None else []
        outcome.kept = registry.new_id()
        self._kept.append(
            Kept(
                id=outcome.kept,
                sandbox=sandbox,
                init=init,
                flags=plans[process.plan].flags,
                tests=tuple(
                    self._nodeids[test.item] for test in process.tests[: process.index + 1]
                ),
                why=_why(outcome, failed=failed),
                environment=process.spec.environment(self._environment),
                groups=tuple(groups),
            )
        )
        process.give_sandbox_away()

    def lost(self) -> None:
        """Drop every kept sandbox, because the keeper has ended and they with it."""
        for one in self._kept:
            one.sandbox.end()
            why = "the keeper of this session was killed"
            self._dropped.setdefault(why, []).append(one.tests[-1])
        self._kept.clear()

    def hand_over(self, keeper: Keeper, budgets: Budgets | None) -> bool:
        """Give all to a custodian at the session's end; return whether it has the keeper, too."""
        alive = [one for one in self._kept if one.init.is_alive()]
        for one in self._kept:
            if one not in alive:
                one.sandbox.end()
                self._dropped.setdefault("its PID 1 has ended", []).append(one.tests[-1])
        self._kept = alive
        if not alive:
            return False
        try:
            self._hand_over(keeper, budgets)
        except (custodian.Refused, KeeperGone, OSError) as error:
            reason = f"nobody could take them over: {str(error) or 'the keeper has ended'}"
            for one in alive:
                one.sandbox.end()
                self._dropped.setdefault(reason, []).append(one.tests[-1])
            self._kept.clear()
            return False
        for one in alive:
            one.sandbox.let_go()
            also = f" and {len(one.tests) - 1} before it" if len(one.tests) > 1 else ""
            self._lines.append(f"  {one.tests[-1]}{also} ({one.why}): nsisolate enter {one.id}")
        return True

    def _hand_over(self, keeper: Keeper, budgets: Budgets | None) -> None:
        now = time.time()
        place = registry.here()
        outer = registry.process(keeper.pid)
        if outer is None:
            raise KeeperGone
        charges = [
            custodian.Charge(
                entry=registry.Entry(
                    id=one.id,
                    init=one.init,
                    keeper=outer,
                    flags=one.flags,
                    tests=one.tests,
                    why=one.why,
                    since=now,
                    until=now + self._limit,
                    directory=self._directory,
                    environment=one.environment,
                    place=place,
                ),
                pidfd=one.sandbox.pidfd,
                control=one.sandbox.control,
                groups=one.groups,
            )
            for one in self._kept
        ]
        groups = [path for one in self._kept for path in one.groups]
        cgroups = budgets.handover() if budgets is not None and groups else None
        for one in self._kept:
            one.sandbox.outlive()
        custodian.start(
            custodian.Job((keeper.pidfd, keeper.socket.fileno()), tuple(charges), cgroups)
        )
        # Until here all ends with this process, from here on with the custodian.
        keeper.detach()
        keeper.let_go()
        if budgets is not None and cgroups is not None:
            budgets.spare(groups)

    def lines(self) -> list[str]:
        """Return the lines for the end: how to enter each sandbox, and which are not kept."""
        found = []
        if self._lines:
            count, limit = len(self._lines), duration(self._limit)
            what = f"{count} sandbox{'es' if count > 1 else ''} kept for {limit}"
            how = "`nsisolate ps` lists them, `nsisolate gc --all` ends them"
            found = [f"nsisolate: {what} ({how}):", *self._lines]
        for why, tests in self._dropped.items():
            named = ", ".join(tests[:_NAMED])
            more = f" and {len(tests) - _NAMED} more" if len(tests) > _NAMED else ""
            found.append(f"nsisolate: not kept ({why}): {named}{more}")
        return found


def _why(outcome: Outcome, *, failed: bool) -> str:
    if outcome.kind is Kind.COMPLETED:
        return "failed" if failed else "passed"
    return str(outcome.kind.value)
