"""``nsisolate run``: run a command in a sandbox with limits, and report what it used.

The command is PID 2 of the sandbox, has the caller's standard streams and terminal,
and its exit status becomes the caller's, as with env(1) and timeout(1).

Guarantees: whatever happens, no process, mount or cgroup of it is left when `run`
returns; if the caller is killed its processes end, and `cgroups.session.sweep` finds the
cgroups. A limit is held, or the command is not started.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, final

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.core.linux.syscalls import StageError, getcwd
from pytest_nsisolate.core.outcome import errno_name, signal_name
from pytest_nsisolate.core.text import size
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.explain.explain import explain
from pytest_nsisolate.files import needed_paths
from pytest_nsisolate.sandbox.client import Keeper, KeeperGone, Sandbox
from pytest_nsisolate.sandbox.operations.namespaces import flags_without
from pytest_nsisolate.sandbox.operations.plan import Plan, build_operations
from pytest_nsisolate.spec.limits import LimitError

from . import launcher
from .foreground_job import (
    NOT_FOUND,
    Attended,
    Interrupted,
    Signals,
    not_executed,
    open_standard_streams,
)
from .run_request import FAILED, Ending, Request, as_json, as_text, times

if TYPE_CHECKING:
    from pytest_nsisolate.cgroups.group import Group

#: An exit code of our own, as timeout(1) has it.
TIMED_OUT = 124
OUT_OF_MEMORY = 128 + 9
#: Seconds between SIGTERM and SIGKILL when the time is over.
GRACE = 2.0
#: Seconds that the end of all processes may take once they are killed.
PATIENCE = 5.0
#: Seconds between two looks at what has no peak in this kernel: at first, and at most.
_SAMPLES = (0.01, 0.25)


def run(request: Request) -> int:
    """Run the command; say on standard error how it went; give the exit code."""
    open_standard_streams()
    ending = _attempt(request)
    for line in ending.messages:
        _say(f"nsisolate: {line}" if not line.startswith((" ", "why:", "mend:")) else line)
    if request.usage == "json":
        _say(json.dumps(as_json(request, ending)))
    elif request.usage == "text" and ending.wall is not None:
        _say("\n".join(as_text(request, ending)))
    return ending.code


def _say(text: str) -> None:
    # Nobody may be reading any more: the exit status still counts.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _attempt(request: Request) -> Ending:
    signals = Signals()
    session: Session | None = None
    try:
        with contextlib.ExitStack() as stack:
            if request.limits or request.usage != "none":
                session = Session(request.limits.controllers())
                stack.callback(_close_session, session)
                session.plan(request.limits)
            return Run(request, session, signals, stack).run()
    except StageError as error:
        return failed(error)
    except KeeperGone:
        return failed(StageError("start the keeper", errno.EPIPE))
    except OSError as error:  # no descriptors or processes left
        return failed(StageError("start the command", error.errno or errno.EIO))
    except Interrupted as stop:
        return Ending(128 + stop.number, "signal", [f"{signal_name(stop.number)} before the start"])


def _close_session(session: Session) -> None:
    for path in session.close():
        _say(f"nsisolate: could not be removed: {path} (try `nsisolate gc`)")


def failed(error: StageError) -> Ending:
    """Return the ending of a command that could not be started, with the cause and the fix."""
    found = explain(error)
    where = f" {error.path}" if error.path else ""
    what = f"SANDBOX FAILED at {error.stage}"
    if isinstance(error, LimitError):
        what = f"LIMIT CAN'T BE HELD: {error.stage.removeprefix('limit ')}"
    # The table has the tests in mind, which are run by pytest.
    mend = found.mend.replace("pytest ...", "nsisolate run ...")
    return Ending(
        FAILED,
        "failed",
        [
            f"{what}{where}: {errno_name(error.errno)}",
            f"why: {found.meaning}",
            f"mend: {mend}",
            "the command did not run; `nsisolate doctor` shows what this host can do",
        ],
    )


@final
class Run:
    """One run: the parts, and the loop that waits for the end."""

    def __init__(
        self,
        request: Request,
        session: Session | None,
        signals: Signals,
        stack: contextlib.ExitStack,
    ) -> None:
        self._request = request
        self._session = session
        self._signals = signals
        self._stack = stack
        self._group: Group | None = None
        self._sampling = _SAMPLES[0]
        self._timed_out = self._killed = False

    def run(self) -> Ending:
        """Build, start, wait and measure; put the clean-up on the stack."""
        keeper = Keeper(subordinate=self._request.spec.user == "root")
        self._stack.callback(keeper.close)
        sandbox, flags = self._build(keeper)
        self._sandbox = sandbox
        self._stack.callback(sandbox.end)
        if self._session is not None:
            self._group = self._session.group(self._request.limits)
            self._stack.callback(self._session.end, self._group)
        self._command = Attended(
            self._start(keeper, sandbox, flags),
            self._signals,
            self._stack,
            [keeper.socket.fileno(), sandbox.control],
        )
        if self._group is not None:
            self._group.close()
        self._command.wait(self._pause, self._look)
        return self._end(sandbox)

    # the start

    def _build(self, keeper: Keeper) -> tuple[Sandbox, int]:
        spec = self._request.spec
        environment, directory = self._request.environment, getcwd()
        program = shutil.which(self._request.command[0], path=environment.get("PATH"))
        program = program and os.path.abspath(program)
        needed = needed_paths.needed_by(program, directory, environment)
        host = needed_paths.probe_host(needed)
        uids, gids = keeper.maps.for_user(spec.user)
        operations = build_operations(
            share=spec.shared,
            hostname=spec.hostname,
            tmpfs=spec.tmpfs,
            groups=gids[0],
            host=host,
            needed=needed,
            basetemp=None,
            pid_max=always_on.pid_max(spec.pids) if always_on.way() is always_on.Way.PID_MAX else 0,
            temporary=tuple((path, False) for path in needed_paths.temporary_of(environment)),
        )
        flags = flags_without(spec.shared)
        if host.store:
            keeper.store(needed_paths.hosts_files({spec.hostname}))
        keeper.add_plan(0, Plan(flags, tuple(uids), tuple(gids), operations))
        keeper.ask(0, 0)
        kind, value, fds = keeper.receive()
        if kind == "failed":
            raise StageError(*value[1:])
        return Sandbox(0, fds[0], fds[1]), flags

    def _start(self, keeper: Keeper, sandbox: Sandbox, flags: int) -> launcher.Start:
        return launcher.Start(
            command=self._request.command,
            environment=dict(self._request.environment),
            directory=getcwd(),
            keeper=keeper.pidfd,
            init=sandbox.pidfd,
            flags=flags,
            group=tuple(self._group.join_fds()) if self._group is not None else (),
            mask=self._signals.mask,
            ignored=self._signals.ignored,
        )

    # the middle

    def _look(self) -> None:
        self._sampling = min(self._sampling * 1.5, _SAMPLES[1])
        if self._command.started is not None and self._group is not None:
            self._group.sample()
        self._hold_to_time()

    def _pause(self) -> float | None:
        """Return how long to wait at most, in milliseconds."""
        ends = [] if self._group is None else [self._sampling]
        timeout = self._request.spec.timeout
        if timeout is not None and self._command.started is not None and not self._killed:
            over = self._command.started + timeout + (GRACE if self._timed_out else 0)
            ends.append(max(0.0, over - time.monotonic()))
        return min(ends) * 1000 + 1 if ends else None

    def _hold_to_time(self) -> None:
        timeout = self._request.spec.timeout
        if timeout is None or self._command.started is None:
            return
        late = time.monotonic() - self._command.started - timeout
        if late >= 0 and not self._timed_out:
            self._timed_out = True
            self._command.terminate()
        elif late >= GRACE and not self._killed:
            self._killed = True
            # By its PID 1: the command may have left the group that it was started in.
            if self._sandbox is not None:
                _kill_all(self._sandbox)

    # the end

    def _end(self, sandbox: Sandbox) -> Ending:
        command = self._command
        if command.error is not None:
            command.terminal.take_back()
            return failed(command.error)
        assert command.status is not None
        status, user, system, largest = command.status
        ending = Ending(wall=command.wall, left=sandbox.processes())
        _end_all(sandbox)
        killed = os.WIFSIGNALED(status)
        command.terminal.take_back(modes=killed or self._timed_out)
        usage = Usage()
        kills = 0
        if self._group is not None:
            self._group.kill(PATIENCE)
            usage, kills = self._group.usage(), self._group.oom_kills()
            ending.denied = self._group.pids_denied()
        by_wait4 = Usage(peak_memory=largest, cpu_user=user, cpu_system=system)
        ending.by_wait4, ending.usage = usage.missing(by_wait4), usage.filled(by_wait4)
        if self._session is not None and usage != Usage():
            ending.backend = self._session.layout.backend
        self._judge(ending, status, kills)
        return ending

    def _judge(self, ending: Ending, status: int, kills: int) -> None:
        limits = self._request.limits
        if self._command.exec_error is not None:
            self._not_started(ending, self._command.exec_error)
            return
        if kills and limits.memory is not None:
            peak = ending.usage.peak_memory or limits.memory
            ending.code, ending.outcome = OUT_OF_MEMORY, "out of memory"
            ending.messages.append(
                f"OUT OF MEMORY: limit {size(limits.memory)}, peak {size(peak)}; the kernel "
                f"killed {times(kills, 'process', 'processes')} of the command"
            )
        elif self._command.started is None:
            # Killed from outside in the middle.
            error = failed(StageError("start the command", errno.EPIPE))
            ending.messages, ending.wall = error.messages, None
        elif self._timed_out:
            ending.code, ending.outcome = TIMED_OUT, "timed out"
            ending.messages.append(f"TIMED OUT after {self._request.spec.timeout:g} s")
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            ending.code, ending.outcome = 128 + number, "signal"
            if number not in (signal.SIGINT, signal.SIGPIPE):
                ending.messages.append(f"ended by signal {number} ({signal_name(number)})")
        else:
            ending.code, ending.outcome = os.WEXITSTATUS(status), "completed"
        if ending.denied and limits.pids is not None:
            ending.messages.append(
                f"TOO MANY PROCESSES: limit {limits.pids}, which refused "
                f"{times(ending.denied, 'fork', 'forks')}"
            )

    def _not_started(self, ending: Ending, number: int) -> None:
        ending.code, lines = not_executed(self._request.command[0], number)
        ending.outcome = "not found" if ending.code == NOT_FOUND else "not executable"
        ending.wall = None
        ending.messages += lines


def _kill_all(sandbox: Sandbox) -> None:
    """Kill everything inside: the kernel does, once PID 1 is gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(sandbox.pidfd, signal.SIGKILL)


def _end_all(sandbox: Sandbox) -> None:
    """Kill everything inside, and wait until it is gone."""
    _kill_all(sandbox)
    poll = select.poll()
    poll.register(sandbox.pidfd, select.POLLIN)
    poll.poll(PATIENCE * 1000)
