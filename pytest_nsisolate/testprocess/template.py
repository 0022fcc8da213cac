"""The template: the fork server. Each test process is one fork of it.

It is a fork of the runner, taken once collection is done, and then stands still:
whatever runs in the runner or in a test process, the next fork starts from the
same state. It lives in the session's user namespace, so that it may enter the
sandboxes below it. Without a sandbox (``--ns-missing fork``) a guard process with
PR_SET_CHILD_SUBREAPER takes the place of PID 1.

`core/messages` describes what it exchanges with the runner.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.cgroups.rlimits import tasks_of
from pytest_nsisolate.core.linux import raw_fork
from pytest_nsisolate.core.linux.descriptors import is_open
from pytest_nsisolate.core.linux.syscalls import (
    CAP_SYS_ADMIN,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    LINUX,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    SIGNALFD_SIGINFO_SIZE,
    StageError,
    block_signals,
    getcwd,
    keep_capability,
    prctl,
    raise_capability,
    restore_mask,
    setns,
    signalfd,
)
from pytest_nsisolate.core.messages import (
    END,
    ENDED,
    FAILED,
    FORK,
    KILL,
    LEFT,
    MAX_FDS,
    MESSAGE,
    PACKETS,
    PID,
    TEXT_LIMIT,
    UP,
    Order,
)
from pytest_nsisolate.core.usage import Usage

from . import forked
from .guard import Reports, guard, kill_children

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable

#: Where there is no signalfd (macOS): how often to look for ended children, in ms.
_REAP_MS = 20

#: Whether forks run the handlers of libraries in C, see `raw_fork`.
_handlers = True


def start(
    keeper: int | None,
    close: list[int],
    keep: Callable[[], set[int]],
    prepare: Callable[[], forked.Body],
    *,
    collect: bool,
) -> tuple[int, socket.socket]:
    """Fork the template off this process; return its pid and the runner's socket to it.

    Args:
        keeper: pidfd of the keeper, or None for tests without namespaces.
        close: the runner's own descriptors, which no test may have.
        keep: returns the other descriptors of the runner that stay open.
        prepare: called once in the template; returns the body of a test process.
        collect: whether to collect garbage first, which else stays in each test process.

    Raises:
        StageError: the fork failed.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, PACKETS)
    except OSError as error:
        raise StageError.of("start the template", error) from None
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        # Each fork would write the buffered text again.
        with contextlib.suppress(Exception):
            if stream is not None:
                stream.flush()
    # This ends faulthandler's watchdog thread. A fork would inherit the thread's lock without
    # the thread, and a test process that cancels (pytest does after each failure) would block.
    faulthandler.cancel_dump_traceback_later()
    # Every test process inherits these objects: no collection there needs to visit them.
    if collect:
        gc.collect()
    needs = _Start(keeper, [ours.fileno(), *close], keep, prepare, os.getpid())
    gc.freeze()
    try:
        # The threads of plugins and of xdist's channel don't exist in the template. Only this
        # fork of the session loses threads.
        pid = _fork(needs)
    except OSError as error:
        ours.close()
        theirs.close()
        raise StageError.of("start the template", error) from None
    finally:
        gc.unfreeze()
    if pid == 0:
        _run(theirs, needs)
    raw_fork.after_in_parent()
    theirs.close()
    return pid, ours


class _Start(NamedTuple):
    """The parameters of `start` that the template needs; *parent* is the runner's pid."""

    keeper: int | None
    close: list[int]
    keep: Callable[[], set[int]]
    prepare: Callable[[], forked.Body]
    parent: int


def _fork(start: _Start) -> int:
    """Fork; return 0 in the child, which still has to call `raw_fork.after_in_child`."""
    global _handlers  # noqa: PLW0603 -- of this process, and inherited by its forks
    _handlers = start.keeper is None or not raw_fork.starts_threads()
    raw_fork.before()
    if not _handlers:
        raw_fork.wait_until_still()
    try:
        return raw_fork.fork(handlers=_handlers)
    except OSError:
        raw_fork.after_in_parent()
        raise


def _run(control: socket.socket, start: _Start) -> NoReturn:
    gc.freeze()
    gc.disable()
    server = None
    try:
        _enter(start)
        raw_fork.after_in_child()
        # A handler may have closed one already (filelock's does), and its number be in use again.
        close = {fd for fd in start.close if is_open(fd)}
        server = _Server(control, start.prepare)
        _neutralise(close - {control.fileno()}, start.keep() | server.own_descriptors())
        control.send(MESSAGE.pack(UP, 0, 0))
        server.serve()
    except (EOFError, ConnectionError, _RunnerGone):
        pass
    except (StageError, OSError) as error:
        if not isinstance(error, StageError):
            error = StageError.of("start the template", error)
        stage = f"{error.stage} {error.path}".rstrip().encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            control.send(MESSAGE.pack(FAILED, 0, error.errno) + stage[:TEXT_LIMIT])
    except BaseException as error:  # noqa: BLE001 -- the last line of this process
        traceback.print_exc(file=sys.__stderr__)
        text = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:TEXT_LIMIT]
        with contextlib.suppress(OSError):
            control.send(MESSAGE.pack(FAILED, 0, errno.EIO) + text)
    finally:
        try:
            if server is not None:
                server.end()
        finally:
            os._exit(0)


def _enter(start: _Start) -> None:
    """Join the session's user namespace, and end with the runner.

    Call it before after-fork handlers run: a process with threads can enter no user namespace.
    """
    if LINUX:
        always_on.offer_template()
        if start.keeper is None and always_on.way(sandbox=False) is always_on.Way.NPROC:
            always_on.limit_children(others=tasks_of(os.getuid()))
    if start.keeper is not None:
        setns(start.keeper, CLONE_NEWUSER, stage="enter the session's user namespace")
    if LINUX:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != start.parent:
            raise EOFError


def serve(control: socket.socket, body: forked.Body) -> int:
    """Be the template of a snapshot's tests; return the item after which to tear down.

    Raises:
        OSError: EPIPE where the runner has ended, or could not send.
    """
    if os.getuid() != 0:
        raise_capability(CAP_SYS_ADMIN)
    global _handlers  # noqa: PLW0603 -- as in `_fork`
    _handlers = _handlers and not raw_fork.starts_threads()
    gc.collect()
    gc.freeze()
    gc.disable()
    server = _Server(control, lambda: body, snapshot=True)
    try:
        server.serve()
    except _Over as over:
        return over.item
    except EOFError:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
    finally:
        server.end()
        os.close(server.signals)
        os.close(server.home)
        restore_mask(server.mask)
        if os.getuid() != 0:
            keep_capability(CAP_SYS_ADMIN)
        gc.enable()


class _Over(Exception):
    """The tests of a snapshot are over."""

    def __init__(self, item: int) -> None:
        super().__init__(item)
        self.item = item


class _RunnerGone(BaseException):
    """The runner has ended: the signal of PR_SET_PDEATHSIG came."""


def _neutralise(close: set[int], keep: set[int]) -> None:
    """Replace every descriptor that is not in *keep* with /dev/null.

    If it were closed, an object of the runner that owns the number could later
    close, or write to, a file that the test has opened there.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    directory = "/proc/self/fd" if LINUX else "/dev/fd"
    for name in os.listdir(directory):
        fd = int(name)
        if fd > 2 and fd != null and (fd in close or fd not in keep):
            with contextlib.suppress(OSError):
                os.fstat(fd)
                os.dup2(null, fd, inheritable=False)
    os.close(null)


class _Server:
    def __init__(
        self,
        control: socket.socket,
        prepare: Callable[[], forked.Body],
        *,
        snapshot: bool = False,
    ) -> None:
        self.control = control
        self.snapshot = snapshot
        self.numbers: dict[int, int] = {}  # pid of a child -> number
        self.pids: dict[int, int] = {}
        self.guards: set[int] = set()
        # Blocked, and read from a descriptor: so each child has only to restore the
        # mask, and the handlers stay those of the runner.
        signals = [int(signal.SIGCHLD), int(signal.SIGTERM)]
        self.mask = block_signals(signals) if LINUX else b""
        self.signals = signalfd(signals) if LINUX else -1
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else the kernel reaps all children
        if not snapshot:
            # Only the runner gets the terminal's Ctrl-C.
            os.setsid()
        # A snapshot returns to its own pid namespace after each fork: it can start no thread
        # while its children are born in another. The template has no right to return.
        self.home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if snapshot else -1
        self.directory = getcwd()
        self.body = prepare()

    def own_descriptors(self) -> set[int]:
        return {self.control.fileno(), self.signals, *self.body.descriptors}

    def serve(self) -> NoReturn:
        if not self.snapshot:
            # Once for all forks. No code of a library runs here from now on: what its
            # handlers stopped stays stopped, since no thread can start again, see `home`.
            raw_fork.before()
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if LINUX:
            poll.register(self.signals, select.POLLIN)
        while True:
            if not LINUX:
                self.reap()
            elif self.snapshot:
                self.reap_tests()
            # In a snapshot a fixture's thread may take SIGCHLD, so poll for ended children.
            sure = LINUX and (not self.snapshot or threading.active_count() == 1)
            for fd, _ in poll.poll(None if sure else _REAP_MS):
                if fd != self.signals:
                    self.take()
                    continue
                with contextlib.suppress(BlockingIOError):
                    if os.read(self.signals, SIGNALFD_SIGINFO_SIZE)[0] == signal.SIGTERM:
                        raise _RunnerGone
                if not self.snapshot:
                    self.reap()

    def take(self) -> None:
        data, fds, _, _ = socket.recv_fds(self.control, MESSAGE.size, MAX_FDS)
        if not data:
            raise EOFError
        kind, number, value = MESSAGE.unpack_from(data)
        if kind == FORK:
            self.fork(number, value, fds)
        elif kind == END:
            raise _Over(value)
        elif kind == KILL and number in self.pids:
            # Not reaped yet, so the pid is still that process.
            with contextlib.suppress(ProcessLookupError):
                pid = self.pids[number]
                os.kill(pid if value > 0 else -pid, abs(value))

    def fork(self, number: int, value: int, fds: list[int]) -> None:
        order = Order.unpack(number, value, fds)
        try:
            if order.flags:
                setns(order.init, CLONE_NEWPID, stage="enter the pid namespace")
            pid = self.fork_here() if self.snapshot else raw_fork.fork(handlers=_handlers)
        except (OSError, StageError) as error:
            code = error.errno or errno.EIO
            self.control.send(MESSAGE.pack(FAILED, number, code))
        else:
            if pid == 0:
                self.become(order)
            self.numbers[pid] = number
            self.pids[number] = pid
            if order.flags:
                self.control.send(MESSAGE.pack(PID, number, pid))
            else:  # the guard sends the pid of its child
                self.guards.add(pid)
        finally:
            for fd in fds:
                os.close(fd)

    def fork_here(self) -> int:
        """Fork a snapshot, and restart the threads and locks of its fixtures after that."""
        raw_fork.before()
        pid = -1
        try:
            pid = raw_fork.fork(handlers=_handlers)
        finally:
            if pid != 0:
                # The handlers hold locks, which would never be released if this failed between.
                try:
                    setns(self.home, CLONE_NEWPID, stage="return to the pid namespace")
                finally:
                    raw_fork.after_in_parent()
        return pid

    def become(self, order: Order) -> NoReturn:
        """Become a test process or its guard. Whatever happens, never return to the template."""
        try:
            if order.init < 0:
                self.guard(order)
            if LINUX:
                os.close(self.signals)
            if self.snapshot:
                os.close(self.home)
            self.control.close()
            forked.run(order, self.body, self.mask, self.directory)
        except (StageError, OSError) as error:
            with contextlib.suppress(OSError):
                code = error.errno or errno.EIO
                self.control.send(MESSAGE.pack(FAILED, order.number, code))
        finally:
            os._exit(forked.EXIT_UNREPORTED)

    def guard(self, order: Order) -> None:
        """Leave a guard behind, and return in its child."""

        def tell(kind: int, value: int, text: bytes = b"") -> None:
            self.control.send(MESSAGE.pack(kind, order.number, value) + text)

        def left(lines: list[str]) -> None:
            tell(LEFT, 0, "\n".join(lines).encode("utf-8", "replace")[:TEXT_LIMIT])

        def close() -> None:
            for fd in order.descriptors():
                os.close(fd)
            self.body.release()

        reports = Reports(
            forked=lambda pid: tell(PID, pid), changed=lambda status: tell(ENDED, status), left=left
        )
        guard(reports, close, self.mask)

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.tell(pid, status, usage)

    def reap_tests(self) -> None:
        """Reap only test processes: a snapshot's other children belong to fixtures."""
        for child_pid in list(self.numbers):
            with contextlib.suppress(ChildProcessError):
                pid, status, usage = os.wait4(child_pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
                if pid:
                    self.tell(pid, status, usage)

    def tell(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        """Report to the runner that a test process ended, stopped or continued."""
        number = self.numbers.get(pid)
        if number is not None:
            text = b""
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                del self.numbers[pid]
                self.guards.discard(pid)
                self.pids.pop(number, None)
                text = b"%f %f %d %d %d" % Usage.of_rusage(usage).to_wire()
            self.control.send(MESSAGE.pack(ENDED, number, status) + text)

    def end(self) -> None:
        """Kill and reap all children: a sandbox can end only after that."""
        for pid in self.numbers:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM if pid in self.guards else signal.SIGKILL)
        for pid in self.numbers if self.snapshot else self.guards:
            # A guard ends after its test process.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if not self.snapshot:
            kill_children()
