"""Request sandboxes from the keeper, own them and end them: the parent's side.

Usable without pytest. Guarantees: whatever happens, `Keeper.close` leaves no
process of the keeper behind; a `Sandbox` is owned by whoever got it from
`Keeper.take`, and `Sandbox.end` frees it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.artifacts import Collected, CollectRequest
from pytest_nsisolate.core.linux.syscalls import StageError

from .builder import MADE, MADE_KIND, MAKE, MAKE_KIND
from .keeper_start import KeeperProcess
from .operations import namespaces
from .operations.namespaces import IdRange, map_text

if TYPE_CHECKING:
    from .operations.plan import Plan

#: The longest part of a plan in one message, in characters; quotes take two in there.
_PART = wire.MAX_MESSAGE // 3


class KeeperGone(Exception):
    """The keeper ended although the session has not."""


class Sandbox:
    """One set of namespaces, ready to be joined, held open by its PID 1."""

    __slots__ = ("control", "number", "pidfd")

    def __init__(self, number: int, pidfd: int, control: int) -> None:
        self.number = number
        self.pidfd = pidfd
        self.control = control

    def another_control(self) -> int:
        """Duplicate the descriptor of the socket to PID 1."""
        return os.dup(self.control)

    def init_pid(self) -> int | None:
        """Return the pid of PID 1 as seen from here, None if it has ended or is unknown."""
        try:
            with open(f"/proc/self/fdinfo/{self.pidfd}", encoding="ascii") as stream:
                pid = next(int(line[4:]) for line in stream if line.startswith("Pid:"))
        except (OSError, StopIteration):
            return None
        return pid if pid > 0 else None

    def _ask(self, message: bytes, answer: str, limit: float, fds: tuple[int, ...] = ()) -> Any:
        """Send *message* to its PID 1; return the value of the frame that answers, or None.

        Args:
            answer: the kind of that frame; others answer requests that have timed out.
            limit: how long to wait, in seconds.
        """
        until = time.monotonic() + limit
        try:
            with socket.socket(fileno=os.dup(self.control)) as control:
                socket.send_fds(control, [message], fds)
                while select.select([control], [], [], max(0.0, until - time.monotonic()))[0]:
                    kind, value = next(wire.Decoder().feed(control.recv(wire.MAX_MESSAGE)))
                    if kind == answer:
                        return value
        except (OSError, StopIteration, wire.WireError):
            return None
        return None

    def processes(self, limit: float = 0.5) -> list[tuple[int, str]]:
        """List what runs inside besides PID 1 and the test process; [] if PID 1 doesn't answer."""
        value = self._ask(b"ps", "processes", limit)
        return [] if value is None else [(pid, command) for pid, command in value]

    def bring_out(self, request: CollectRequest, fds: list[int], limit: float) -> Collected | None:
        """Have its PID 1 copy files to the directories *fds*; return None if it doesn't answer."""
        value = self._ask(wire.encode("bring out", request), "brought", limit, tuple(fds))
        try:
            return None if value is None else Collected.from_wire(value)
        except (ValueError, TypeError):
            return None

    def terminate(self) -> None:
        """Have its PID 1 send SIGTERM to everything inside; don't wait for it."""
        self._ask(b"tm", "signalled", 0)

    def stop(self, limit: float = 0.5) -> bool:
        """Have its PID 1 stop everything inside (SIGSTOP); return whether it did so in time."""
        return self._ask(b"st", "stopped", limit) is not None

    def go_on(self) -> None:
        """Have its PID 1 continue what `stop` has stopped (SIGCONT); don't wait for it."""
        self._ask(b"ct", "continued", 0)

    def outlive(self, limit: float = 5.0) -> None:
        """Have its PID 1 close the runner's standard error, as it is to outlive the runner."""
        self._ask(b"kp", "kept", limit)

    def let_go(self) -> None:
        """Close the descriptors; it lives on if another process has them as well."""
        os.close(self.pidfd)
        os.close(self.control)

    def end(self) -> None:
        """Kill everything inside and close it. The kernel does the rest."""
        # If it can't be killed: it ends by itself when its socket is closed.
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.let_go()


def hang_up(channel: socket.socket) -> None:
    """End a connection for whoever holds either end of it."""
    with contextlib.suppress(OSError):  # the other end has
        channel.shutdown(socket.SHUT_RDWR)


class IdMaps:
    """Which ids the session's user namespace has, and the maps of the sandboxes in it."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.uids = [IdRange(self.uid, self.uid, 1)]
        self.gids = [IdRange(self.gid, self.gid, 1)]
        #: Whether more than the caller's own ids are there.
        self.wide = False

    def write(self, pid: int, *, subordinate: bool) -> None:
        """Give the user namespace of *pid* the widest map this caller may write.

        With CAP_SETUID that is every id the caller has; else, where *subordinate*
        asks for them and newuidmap(1) grants them, the caller's own and its
        subordinate ids; else the caller's own.
        """
        if self.uid == 0:
            uids = namespaces.identity(namespaces.read_map("uid_map"))
            gids = namespaces.identity(namespaces.read_map("gid_map"))
            try:
                namespaces.write_maps(f"/proc/{pid}", map_text(uids), map_text(gids))
            except StageError as error:
                # Root without the capability, as in some containers.
                if error.errno != errno.EPERM:
                    raise
            else:
                self.uids, self.gids, self.wide = uids, gids, True
                return
        if subordinate and self._subordinate(pid):
            return
        namespaces.write_maps(
            f"/proc/{pid}", map_text(self.uids), map_text(self.gids), deny_setgroups=True
        )

    def _subordinate(self, pid: int) -> bool:
        uids = namespaces.subordinate_ids("/etc/subuid", self.uid)
        gids = namespaces.subordinate_ids("/etc/subgid", self.uid)
        if not (uids and gids):
            return False
        wanted = [(self.uids + uids, "newuidmap"), (self.gids + gids, "newgidmap")]
        for ranges, program in wanted:
            words = [str(number) for one in ranges for number in one]
            try:
                done = subprocess.run(
                    [program, str(pid), *words], capture_output=True, timeout=10, check=False
                )
            except (OSError, subprocess.TimeoutExpired):
                return False
            if done.returncode:
                return False
        self.uids, self.gids, self.wide = wanted[0][0], wanted[1][0], True
        return True

    def for_user(self, user: str) -> tuple[list[IdRange], list[IdRange]]:
        """Return the maps of a sandbox for the key ``user``: "same" or "root"."""
        uids, gids = namespaces.identity(self.uids), namespaces.identity(self.gids)
        if user == "same" or self.uid == 0:
            return uids, gids
        return _own_first(self.uid, uids), _own_first(self.gid, gids)


def _own_first(own: int, ranges: list[IdRange]) -> list[IdRange]:
    """Map 0 to *own*, and 1, 2, ... to the other ids of *ranges*."""
    mapped, following = [IdRange(0, own, 1)], 1
    for inside, _, count in ranges:
        if inside != own:
            mapped.append(IdRange(following, inside, count))
            following += count
    return mapped


class Maker:
    """The socket to what builds sandboxes: the keeper, or the PID 1 of a snapshot's sandbox.

    Args:
        channel: that socket; this owns it.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.socket = channel

    def _send(self, kind: str, value: object = None) -> None:
        self._post(wire.encode(kind, value))

    def _post(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except OSError:
            # Whatever it is: a message that is missing is waited for by somebody. So both
            # sides see the end of the connection.
            hang_up(self.socket)
            raise KeeperGone from None

    def add_plan(self, number: int, plan: Plan) -> None:
        """Make *plan* known under *number*."""
        text = wire.dumps(plan.to_wire())
        for begin in range(0, len(text), _PART):
            self._send("part", text[begin : begin + _PART])
        self._send("plan", number)

    def ask(self, number: int, plan: int) -> None:
        """Ask for a sandbox; `receive` will bring it, or its failure, under *number*."""
        self._post(MAKE.pack(MAKE_KIND, number, plan))

    def receive(self) -> tuple[str, Any, list[int]]:
        """Wait for the next message; return it and its descriptors.

        Raises:
            KeeperGone: there will be none.
        """
        try:
            data, fds, _, _ = wire.last_words(lambda: socket.recv_fds(self.socket, 4096, 2))
        except OSError:
            data, fds = b"", []
        if not data:
            raise KeeperGone
        if data[0] == MADE_KIND:
            number = MADE.unpack(data)[1]
            if len(fds) < 2:
                # recvmsg(2) leaves out what there is no room for in this process.
                for fd in fds:
                    os.close(fd)
                return "failed", [number, "receive the sandbox", errno.EMFILE, ""], []
            return "made", number, fds
        kind, value = next(wire.Decoder().feed(data))
        return kind, value, fds


class Keeper(Maker):
    """Brings the keeper up and speaks with it.

    Args:
        process: the keeper's, if it has been started before; this owns it.
        subordinate: whether tests want more ids than the caller's own.

    Raises:
        StageError: this host can't do what the session needs; says at which stage.
    """

    def __init__(self, process: KeeperProcess | None = None, *, subordinate: bool = False) -> None:
        self.maps = IdMaps()
        self.pidfd = -1
        self._process = process or KeeperProcess()
        super().__init__(self._process.socket)
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
            self._expect("unshared")
            self.maps.write(self._process.pid, subordinate=subordinate)
            self._send("mapped")
            self._expect("up")
        except OSError as error:
            self.close()
            raise StageError.of("start the keeper", error) from None
        except KeeperGone:
            self.close()
            raise StageError("start the keeper", errno.EPIPE) from None
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The pid of the outer keeper process."""
        return self._process.pid

    def _expect(self, wanted: str) -> None:
        kind, value, _ = self.receive()
        if kind == "failed":
            raise StageError(*value[1:])
        assert kind == wanted, (kind, wanted)

    def store(self, files: dict[str, str]) -> None:
        """Keep small files that plans bind (`plan.STORE`)."""
        self._send("store", files)

    def detach(self) -> None:
        """Make it independent of this process: it lives as long as anybody has its socket.

        Raises:
            KeeperGone: it has ended.
        """
        self._send("detach")
        while True:
            kind, _, fds = self.receive()
            for fd in fds:  # of a sandbox that nobody waits for any more
                os.close(fd)
            if kind == "detached":
                return

    def let_go(self) -> None:
        """Leave it, after `detach`, to the other process that has its socket."""
        self._process.let_go()
        os.close(self.pidfd)
        self.pidfd = -1

    def close(self) -> None:
        """End the keeper, and with it every sandbox that is left; again is no error."""
        self._process.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def probe(plan: Plan) -> tuple[Keeper, Sandbox]:
    """Build one sandbox for real; the caller closes both.

    Raises:
        StageError: it can't be built here.
    """
    keeper = Keeper()
    try:
        keeper.add_plan(0, plan)
        keeper.ask(0, 0)
        kind, value, fds = keeper.receive()
        if kind == "failed":
            raise StageError(*value[1:])  # noqa: TRY301 -- the clean-up below is for it too
        return keeper, Sandbox(0, fds[0], fds[1])
    except KeeperGone:
        keeper.close()
        raise StageError("start the keeper", errno.EPIPE) from None
    except BaseException:
        keeper.close()
        raise
