"""The keeper: a bare interpreter, started once per session, that builds sandboxes ahead of need.

It is two processes. The outer one unshares the session's user and pid namespace
and waits; the inner one is PID 1 of that pid namespace, so that when it ends the
kernel ends every sandbox below it. Both die with the runner: the outer by
PR_SET_PDEATHSIG and by the closing of its socket, the inner with the outer. Where
sandboxes are kept (`kept.custodian`), the runner hands that socket to another process first.

Talk with the runner (`client.Keeper` is the other side), one message a packet:

    -> ["part", text]               a part of a plan, as JSON: one may be long
    -> ["plan", number]             remember the plan whose parts these were
    -> ["store", {name: text}]      keep files that plans bind
    -> MAKE id, number              build a sandbox by that plan
    <- ["unshared", null]           the session's user namespace waits for its maps
    -> ["mapped", null]             they are written
    <- ["up", null]                 sandboxes can be asked for
    <- MADE id                      with two descriptors: pidfd of its PID 1, its socket
    <- ["failed", [id, stage, errno, path]]   id -1: the keeper itself could not start
    -> ["detach", null]             the runner will end: live on as long as the socket is open
    <- ["detached", null]           from now on its end is none of the keeper's

What is sent per sandbox is binary and short; the rest is JSON (`wire`).
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.syscalls import (
    AT_RECURSIVE,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    OPEN_TREE_CLONE,
    PR_SET_PDEATHSIG,
    StageError,
    mount,
    open_tree,
    prctl,
    setns,
    unshare,
)

from . import init
from .builder import MAKE, MAKE_KIND, Builder, fork, send
from .operations import plan
from .operations.steps import put_back, stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def main(fd: int, parent: int) -> NoReturn:
    """Run the outer process; *fd* is its socket, *parent* the runner's pid."""
    code = 1
    try:
        control = socket.socket(fileno=fd)
        try:
            # The terminal's Ctrl-C is for the runner alone.
            os.setsid()
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, stage="start the keeper")
            if os.getppid() != parent:
                os._exit(1)
            code = _outer(control)
        except (EOFError, ConnectionError):
            code = 0
        except (StageError, OSError) as error:
            _failed(control, error)
    except BaseException as error:  # noqa: BLE001 -- the last line of this process
        _say(error)
    finally:
        os._exit(code)


def _failed(control: socket.socket, error: StageError | OSError) -> None:
    """Report to the runner why there will be no sandboxes."""
    if not isinstance(error, StageError):
        error = StageError.of("start the keeper", error)
    send(control, "failed", [-1, error.stage, error.errno, error.path])


def _say(error: BaseException) -> None:
    sys.stderr.write(f"nsisolate: keeper: {error!r}\n")
    sys.stderr.flush()


def _receive(control: socket.socket) -> tuple[str, Any]:
    data = control.recv(wire.MAX_MESSAGE)
    if not data:
        raise EOFError
    return next(wire.Decoder().feed(data))


def _outer(control: socket.socket) -> int:
    unshare(CLONE_NEWUSER | CLONE_NEWPID, stage="unshare user and pid")
    send(control, "unshared")
    if _receive(control)[0] != "mapped":
        return 1
    guard, guarded = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inner = os.fork()
    if inner == 0:
        guarded.close()
        _inner(control, guard)
    guard.close()
    control.close()
    # A word, if it is to detach; the end of the stream is that of the inner process.
    while guarded.recv(1):
        prctl(PR_SET_PDEATHSIG, 0)
        _let_go()
        guarded.send(b"k")
    _, status = os.waitpid(inner, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _let_go() -> None:
    """Hold nothing open that is the runner's: who reads its output waits for the end of it."""
    init.close_stderr()
    os.chdir("/")


def _inner(control: socket.socket, guard: socket.socket) -> NoReturn:
    code = 1
    try:
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, stage="start the keeper")
            # PID 1 cannot see its parent's pid; an end of file on this pipe says
            # that the parent was gone before the line above.
            if select.select([guard], [], [], 0)[0]:
                os._exit(1)
            _own_mounts()
            server = _Server(control, guard)
        except (StageError, OSError) as error:
            _failed(control, error)
            os._exit(1)
        send(control, "up")
        server.serve()
    except (EOFError, ConnectionError):
        code = 0
    except BaseException as error:  # noqa: BLE001 -- the last line of this process
        _say(error)
    finally:
        os._exit(code)


def _own_mounts() -> None:
    """Make the mount namespace that sandboxes copy: the host's, with this session's /proc."""
    unshare(CLONE_NEWNS, stage="unshare mnt")
    mount(b"none", b"/", b"", MS_REC | MS_SLAVE, b"", "make mounts slaves")
    mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if os.path.isdir("/sys/fs/cgroup"):
        # Once, here, for every sandbox: they copy it as it is.
        tree = open_tree(b"/sys/fs/cgroup", OPEN_TREE_CLONE | AT_RECURSIVE)
        put_back(tree, b"/sys/fs/cgroup", readonly=True)
        os.close(tree)


def _store(files: dict[str, str]) -> None:
    """Keep *files* (name to text) where plans find them; sandboxes cover the place."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount(b"tmpfs", os.fsencode(plan.STORE), b"tmpfs", flags, b"size=1m,mode=755")
    stored.append(os.fsencode(plan.STORE))
    for name, text in files.items():
        with open(f"{plan.STORE}/{name}", "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)


def _mount_namespace() -> int:
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


class _Grounds:
    """Mount namespaces that sandboxes start with a copy of.

    Args:
        close: gets each descriptor of theirs.
    """

    def __init__(self, close: list[int]) -> None:
        self.close = close
        self.home = -1
        self.known: dict[object, int] = {}

    def lay(self, ground: tuple[plan.Operation, ...]) -> int:
        """Return the mount namespace of a ground; make it once for all plans that have the same."""
        if ground in self.known:
            return self.known[ground]
        if self.home < 0:
            self.home = _mount_namespace()
            self.close.append(self.home)
        unshare(CLONE_NEWNS, stage="unshare mnt")
        fd = _mount_namespace()
        self.close.append(fd)
        try:
            for function, arguments in plan.steps_of(ground):
                function(*arguments)
        finally:
            setns(self.home, CLONE_NEWNS, stage="go back to the keeper's mounts")
        self.known[ground] = fd
        return fd

    def fork(self, program: plan.Program) -> int:
        """Fork a PID 1 that starts with a copy of the program's ground."""
        if program.ground < 0:
            return fork(program)
        setns(program.ground, CLONE_NEWNS, stage="enter the ground")
        first = -1
        try:
            first = fork(program)
        finally:
            if first != 0:
                setns(self.home, CLONE_NEWNS, stage="go back to the keeper's mounts")
        return first


class _Server:
    """The loop of the inner process."""

    def __init__(self, control: socket.socket, guard: socket.socket) -> None:
        self.control = control
        self.guard = guard
        self.buffer = bytearray(wire.MAX_MESSAGE)
        self.spoiled: dict[int, StageError] = {}
        inheritance = init.Inheritance()

        def run(control: socket.socket, program: plan.Program, close: list[int]) -> NoReturn:
            init.run(control, program, inheritance, close)

        close = [control.fileno(), guard.fileno()]
        self.grounds = _Grounds(close)
        self.builder = Builder(control, run, close, self.grounds.fork)

    def serve(self) -> NoReturn:
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            length = self.control.recv_into(self.buffer)
            if length == 0:
                raise EOFError
            if length == MAKE.size and self.buffer[0] == MAKE_KIND:
                _, number, program = MAKE.unpack_from(self.buffer)
                if program in self.spoiled:
                    self.builder.failed(number, self.spoiled[program])
                else:
                    self.builder.make(number, program)
            else:
                kind, value = next(wire.Decoder().feed(bytes(self.buffer[:length])))
                if kind == "store":
                    self.store(value)
                elif kind == "detach":
                    self.detach()
                else:
                    wanted = self.builder.learn(kind, value)
                    if wanted is not None and wanted.ground:
                        self.lay(value, wanted.ground)

    def detach(self) -> None:
        self.guard.send(b"d")
        if not self.guard.recv(1):
            raise EOFError
        _let_go()
        send(self.control, "detached")

    def lay(self, number: int, ground: tuple[plan.Operation, ...]) -> None:
        try:
            self.builder.put_on(number, self.grounds.lay(ground))
        except StageError as error:
            self.spoiled[number] = error
        except OSError as error:
            code, path = error.errno or errno.EIO, str(error.filename or "")
            self.spoiled[number] = StageError("lay the ground", code, path)

    def store(self, files: dict[str, str]) -> None:
        try:
            _store(files)
        except StageError as error:
            self.builder.failed(-1, error)
