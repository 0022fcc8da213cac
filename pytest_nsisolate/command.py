"""``nsisolate run``: one command in one sandbox, held to limits, and what it used.

The command is PID 2 of the sandbox, has the caller's standard streams and terminal,
and its exit status becomes the caller's, as with env(1) and timeout(1).

Guarantees: whatever happens, no process, mount or cgroup of it is left when `run`
returns; if the caller is killed its processes end, and `cgroupsession.sweep` finds the
cgroups. A limit is held, or the command is not started.
"""

import contextlib
import dataclasses
import errno
import json
import os
import select
import shutil
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, final

from . import launch, surroundings
from .cgroupsession import Session
from .explain import explain
from .limits import LimitError, Usage
from .namespaces import flags_without
from .outcome import errno_name, signal_name
from .plan import Plan, build_operations
from .request import FAILED, Ending, Request, as_json, as_text, size, times
from .sandbox import Keeper, KeeperGone, Sandbox
from .syscalls import (
    SIGNALFD_SIGINFO_SIZE,
    StageError,
    block_signals,
    signalfd,
)
from .terminal import Terminal

if TYPE_CHECKING:
    from types import FrameType

    from .cgroup import Group

#: Exit codes of our own, as env(1) and timeout(1) have them.
TIMED_OUT, NOT_EXECUTABLE, NOT_FOUND = 124, 126, 127
OUT_OF_MEMORY = 128 + 9
#: Seconds between SIGTERM and SIGKILL when the time is over.
GRACE = 2.0
#: Seconds that the end of all processes may take once they are killed.
PATIENCE = 5.0
#: Seconds between two looks at what has no peak in this kernel: at first, and at most.
_SAMPLES = (0.01, 0.25)

_SIGINFO = struct.Struct("=I")
_TO_THE_COMMAND = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTSTP")
_JOB_CONTROL = ("SIGTSTP", "SIGTTIN", "SIGTTOU")


class Interrupted(BaseException):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(request: Request) -> int:
    """Run the command; say on standard error how it went; give the exit code."""
    _open_standard_streams()
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


def _open_standard_streams() -> None:
    """A standard stream that is closed would be the number of a descriptor of ours."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
            os.set_inheritable(fd, True)  # noqa: FBT003 -- takes no keywords


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
    """The ending of a command that could not be started; says why and what mends it."""
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
class Signals:
    """The signals that are passed on to the command; before it runs they end the set-up."""

    def __init__(self) -> None:
        named = [int(getattr(signal, name)) for name in _TO_THE_COMMAND]
        here = {number: signal.getsignal(number) for number in signal.valid_signals()}
        #: What the caller's caller wants ignored. Python itself ignores two.
        own = {signal.SIGPIPE, signal.SIGXFSZ}
        self.ignored = frozenset(
            int(number)
            for number, handler in here.items()
            if handler is signal.SIG_IGN and number not in own
        )
        self.numbers = [number for number in named if number not in self.ignored]
        self._pending = False
        for number in self.numbers:
            if number != signal.SIGTSTP:
                signal.signal(number, self._interrupt)
        #: For the command.
        self.mask = block_signals([])

    def _interrupt(self, number: int, frame: "FrameType | None") -> None:
        # Once: the second one would break into the clean-up.
        if not self._pending:
            self._pending = True
            raise Interrupted(number)

    def wait_for(self) -> int:
        """From now on they come through a descriptor."""
        fd = signalfd(self.numbers)
        block_signals([*self.numbers, int(signal.SIGTTOU)])
        return fd


@final
class Run:
    """One run: the parts, and the loop that waits for the end."""

    def __init__(
        self,
        request: Request,
        session: "Session | None",
        signals: Signals,
        stack: contextlib.ExitStack,
    ) -> None:
        self._request = request
        self._session = session
        self._signals = signals
        self._stack = stack
        self._group: Group | None = None
        self._pid = 0
        self._status: list[Any] | None = None
        self._exec_error: int | None = None
        self._error: StageError | None = None
        self._started: float | None = None
        self._timed_out = self._killed = False

    def run(self) -> Ending:
        """Build, start, wait, measure; the clean-up is on the stack."""
        keeper = Keeper(subordinate=self._request.spec.user == "root")
        self._stack.callback(keeper.close)
        sandbox, flags = self._build(keeper)
        self._sandbox = sandbox
        self._stack.callback(sandbox.end)
        if self._session is not None:
            self._group = self._session.group(self._request.limits)
            self._stack.callback(self._session.end, self._group)
        self._terminal = Terminal()
        self._stack.callback(self._terminal.close)
        fd = self._signals.wait_for()
        self._stack.callback(os.close, fd)
        self._launcher = launch.Launcher(
            self._start(keeper, sandbox, flags), [keeper.socket.fileno(), sandbox.control, fd]
        )
        self._stack.callback(self._launcher.close)
        if self._group is not None:
            self._group.close()
        self._wait(fd)
        return self._end(sandbox)

    # the start

    def _build(self, keeper: Keeper) -> "tuple[Sandbox, int]":
        spec = self._request.spec
        environment, directory = self._request.environment, _directory()
        program = shutil.which(self._request.command[0], path=environment.get("PATH"))
        program = program and os.path.abspath(program)
        needed = surroundings.needed_by(program, directory, environment)
        uids, gids = keeper.maps.for_user(spec.user)
        operations = build_operations(
            share=spec.shared,
            hostname=spec.hostname,
            tmpfs=spec.tmpfs,
            groups=gids[0],
            host=surroundings.probe_host(needed),
            needed=needed,
            basetemp=None,
        )
        flags = flags_without(spec.shared)
        keeper.store(surroundings.hosts_files({spec.hostname}))
        keeper.add_plan(0, Plan(flags, tuple(uids), tuple(gids), operations))
        keeper.ask(0, 0)
        kind, value, fds = keeper.receive()
        if kind == "failed":
            raise StageError(*value[1:])
        return Sandbox(0, fds[0], fds[1]), flags

    def _start(self, keeper: Keeper, sandbox: Sandbox, flags: int) -> launch.Start:
        return launch.Start(
            command=self._request.command,
            environment=dict(self._request.environment),
            directory=_directory(),
            keeper=keeper.pidfd,
            init=sandbox.pidfd,
            flags=flags,
            group=tuple(self._group.join_fds()) if self._group is not None else (),
            mask=self._signals.mask,
            ignored=self._signals.ignored,
        )

    # the middle

    def _wait(self, signals: int) -> None:
        """Until the command has ended, or could not be started."""
        poll = select.poll()
        control, gate = self._launcher.control, self._launcher.gate
        for fd in (signals, control.fileno(), gate.fileno()):
            poll.register(fd, select.POLLIN)
        pause, longest = _SAMPLES
        while self._status is None and self._error is None:
            for fd, _ in poll.poll(self._pause(pause)):
                if fd == signals:
                    self._pass_on(_SIGINFO.unpack_from(os.read(fd, SIGNALFD_SIGINFO_SIZE))[0])
                elif fd == gate.fileno():
                    if not self._from_command():
                        poll.unregister(fd)
                else:
                    self._from_launcher(*launch.receive(control))
            pause = min(pause * 1.5, longest)
            if self._started is not None and self._group is not None:
                self._group.sample()
            self._hold_to_time()

    def _pause(self, sampling: float) -> "float | None":
        """How long to wait at most, in milliseconds."""
        ends = [] if self._group is None else [sampling]
        timeout = self._request.spec.timeout
        if timeout is not None and self._started is not None and not self._killed:
            over = self._started + timeout + (GRACE if self._timed_out else 0)
            ends.append(max(0.0, over - time.monotonic()))
        return min(ends) * 1000 + 1 if ends else None

    def _hold_to_time(self) -> None:
        timeout = self._request.spec.timeout
        if timeout is None or self._started is None:
            return
        late = time.monotonic() - self._started - timeout
        if late >= 0 and not self._timed_out:
            self._timed_out = True
            self._launcher.signal(signal.SIGTERM)
            self._launcher.signal(signal.SIGCONT)
        elif late >= GRACE and not self._killed:
            self._killed = True
            # By its PID 1: the command may have left the group that it was started in.
            if self._sandbox is not None:
                _kill_all(self._sandbox)

    def _pass_on(self, number: int) -> None:
        self._launcher.signal(number)
        if number != signal.SIGTSTP:
            # One that is stopped would not see it.
            self._launcher.signal(signal.SIGCONT)

    def _from_command(self) -> bool:
        """Take a message of the command to be; whether there may be more."""
        kind, value = launch.receive(self._launcher.gate)
        if kind == "ready":
            if self._terminal.is_for_command():
                self._terminal.lend(self._pid)
            self._started = time.monotonic()
            self._launcher.gate.send(b"go")
        elif kind == "failed":
            self._error = StageError(*value)
        elif kind == "exec":
            self._exec_error = value
        return kind != "gone"

    def _from_launcher(self, kind: str, value: Any) -> None:
        if kind == "pid":
            self._pid = value
        elif kind == "failed":
            self._error = StageError(*value)
        elif kind == "stopped":
            self._stopped(value)
        elif kind == "ended":
            self._status = value
            self._wall = time.monotonic() - self._started if self._started is not None else 0.0
            # Said before it ended, and perhaps not read yet.
            while select.select([self._launcher.gate], [], [], 0)[0] and self._from_command():
                pass
        else:
            self._error = StageError("start the command", errno.EPIPE)

    def _stopped(self, number: int) -> None:
        """The command has stopped: so does this process, until the shell continues it."""
        if not self._terminal.there:
            return
        wants = number in (signal.SIGTTIN, signal.SIGTTOU)
        if not (wants and self._terminal.lend(self._pid)):
            self._terminal.take_back()
            names = {int(getattr(signal, name)) for name in _JOB_CONTROL}
            stop = number if number in names else int(signal.SIGTSTP)
            # The whole job, as the terminal does it; where no shell would continue it
            # (an orphaned process group) the kernel takes no notice of these signals.
            before = signal.signal(stop, signal.SIG_DFL)
            os.killpg(0, stop)
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [stop])  # and here it stands
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(stop, before)
            if self._terminal.is_for_command() or wants:
                self._terminal.lend(self._pid)
        self._launcher.signal(signal.SIGCONT)

    # the end

    def _end(self, sandbox: Sandbox) -> Ending:
        if self._error is not None:
            self._terminal.take_back()
            return failed(self._error)
        assert self._status is not None
        status, user, system, largest = self._status
        ending = Ending(wall=self._wall, left=sandbox.processes())
        _end_all(sandbox)
        killed = os.WIFSIGNALED(status)
        self._terminal.take_back(modes=killed or self._timed_out)
        usage = Usage()
        kills = 0
        if self._group is not None:
            self._group.kill(PATIENCE)
            usage, kills = self._group.usage(), self._group.oom_kills()
            ending.denied = self._group.pids_denied()
        ending.by_wait4, ending.usage = _filled(usage, user, system, largest)
        if self._session is not None and usage != Usage():
            ending.backend = self._session.layout.backend
        self._judge(ending, status, kills)
        return ending

    def _judge(self, ending: Ending, status: int, kills: int) -> None:
        limits = self._request.limits
        if self._exec_error is not None:
            self._not_started(ending, self._exec_error)
            return
        if kills and limits.memory is not None:
            peak = ending.usage.memory_peak or limits.memory
            ending.code, ending.outcome = OUT_OF_MEMORY, "out of memory"
            ending.messages.append(
                f"OUT OF MEMORY: limit {size(limits.memory)}, peak {size(peak)}; the kernel "
                f"killed {times(kills, 'process', 'processes')} of the command"
            )
        elif self._started is None:
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
        name = self._request.command[0]
        found = number in (errno.ENOENT, errno.ENOTDIR)
        ending.code = NOT_FOUND if found else NOT_EXECUTABLE
        ending.outcome = "not found" if found else "not executable"
        ending.wall = None
        ending.messages.append(f"can't run {name!r}: {os.strerror(number)}")
        if not found and number == errno.ENOEXEC:
            ending.messages.append("a script needs a first line such as #!/bin/sh")


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


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


def _filled(
    usage: Usage, user: float, system: float, largest: int
) -> "tuple[frozenset[str], Usage]":
    """*usage* with what wait4(2) knows in the place of what it lacks, and which that is."""
    instead: dict[str, Any] = {"cpu_user": user, "cpu_system": system, "memory_peak": largest}
    missing = {key: value for key, value in instead.items() if getattr(usage, key) is None}
    return frozenset(missing), dataclasses.replace(usage, **missing)
