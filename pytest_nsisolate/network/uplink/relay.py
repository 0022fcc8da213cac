"""The relay: a bare process of its own that brings ports of the host's loopback into sandboxes.

Sockets stay in the network namespace that they were made in. Those it listens on were made
in a sandbox and came here by SCM_RIGHTS; it connects from where it runs, the host's.
It is started once per session, has no rights, and dies with the runner.

A port of the sandbox listens exactly as long as the host's does: the kernel is asked
(sock_diag(7)) every `TICK` seconds. So a service that is down refuses connections
inside as it does outside, with ECONNREFUSED, and not by closing what it first accepted.
(One that comes within `TICK` of the end of the service is reset.)

    runner -> END number              the sandbox is gone: so are its ports and connections
    test   -> OFFER number, ports     with the sockets, one a port, and one to answer on

Guarantees: what one side sends, the other gets, each direction ends by itself (half-close),
a reset is passed on as one, and who does not read is not read for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
import time

from pytest_nsisolate.core.linux import netlink
from pytest_nsisolate.core.linux.syscalls import (
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    StageError,
    drop_capabilities,
    prctl,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: How often the host's ports are looked at while a sandbox waits for them, in seconds.
TICK = 0.01
END = struct.Struct("=I")
OFFER = struct.Struct("=IH")
MAX_SOCKETS = 250  # SCM_MAX_FD is 253
_PORT = struct.Struct("=H")
_CHUNK = 1 << 18
_BACKLOG = 4096
_ABORT = struct.pack("ii", 1, 0)  # struct linger: reset at once
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_MANY = 64  # connections accepted in a row

_DIAG = struct.Struct("=BBBBI")  # inet_diag_req_v2, without its socket id
_BY_FAMILY, _LISTEN = 20, 10


def main(control: int, offers: int, parent: int) -> NoReturn:
    """Run the relay; the numbers are of its sockets, and the pid of the runner."""
    code = 1
    try:
        os.setsid()  # the terminal's Ctrl-C is for the runner alone
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        _many_files()
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        drop_capabilities()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            Relay(socket.socket(fileno=control), socket.socket(fileno=offers)).run()
        code = 0
    except (EOFError, ConnectionError):
        code = 0
    except (OSError, StageError) as error:
        sys.stderr.write(f"nsisolate: relay: {error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def _many_files() -> None:
    import resource  # noqa: PLC0415 -- Windows, which imports this module's constants, has none

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Ports:
    """The ports of this network's loopback that have a listener."""

    def __init__(self) -> None:
        self._diag: socket.socket | None = None
        with contextlib.suppress(StageError):
            self._diag = netlink.open_socket(netlink.NETLINK_SOCK_DIAG, "open a netlink socket")
            self._diag.settimeout(1)

    def listens(self, port: int) -> bool:
        """Return whether a connection to *port* would be taken; yes where the kernel can't say."""
        for family in (socket.AF_INET, socket.AF_INET6):
            if self._diag is None:
                return True
            try:
                found = self._ask(family, port)
            except OSError:
                self._diag = None
                return True
            if found:
                return True
        return False

    def _ask(self, family: int, port: int) -> bool:
        assert self._diag is not None
        loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
        packed = socket.inet_pton(family, loopback).ljust(16, b"\0")
        # inet_diag_sockid: ports in network order, addresses, any interface, no cookie. The
        # kernel looks up who would get a packet from "destination" to "source".
        identity = struct.pack("!HH", port, 0) + packed + packed
        identity += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        body = _DIAG.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN) + identity
        self._diag.send(netlink.message(_BY_FAMILY, 0, body))
        kind, _, answer = next(netlink.messages(self._diag.recv(4096)), (0, 0, b""))
        if kind == _BY_FAMILY:
            return answer[1] == _LISTEN
        code = netlink.error_of(answer)
        if code in (errno.ENOENT, errno.EAFNOSUPPORT):
            return False
        raise OSError(code, "sock_diag")


class Listener:
    """One port of one sandbox."""

    def __init__(self, sock: socket.socket, port: int, number: int) -> None:
        self.sock = sock
        self.port = port
        self.number = number
        self.listening = False

    def listen(self) -> None:
        self.sock.listen(_BACKLOG)
        self.listening = True

    def refuse(self) -> None:
        """Stay bound, and refuse: what a listening socket is after shutdown(2)."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)
        self.listening = False


class Side:
    """One of the two sockets of a connection."""

    __slots__ = ("connection", "ended", "interest", "other", "pending", "sock")

    other: Side

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self.sock = sock
        self.connection = connection
        self.interest = 0
        self.pending: bytes | memoryview = b""  # to be sent to it
        self.ended = False  # it has sent all


class Connection:
    """A connection of a sandbox, and the one to the host's port that serves it."""

    __slots__ = ("inside", "number", "outside", "port", "tried", "up")

    def __init__(self, accepted: socket.socket, listener: Listener) -> None:
        self.number = listener.number
        self.port = listener.port
        self.inside = Side(accepted, self)
        self.outside: Side | None = None
        self.tried = 0
        self.up = False


class Relay:
    """See the module."""

    def __init__(self, control: socket.socket, offers: socket.socket) -> None:
        self._control = control
        self._offers = offers
        self._ports = Ports()
        self._epoll = select.epoll()
        self._listeners: dict[int, Listener] = {}  # by descriptor, as the next one
        self._sides: dict[int, Side] = {}
        self._connections: set[Connection] = set()
        self._paused: list[Listener] = []
        self._buffer = bytearray(_CHUNK)

    def run(self) -> NoReturn:
        for sock in (self._control, self._offers):
            self._epoll.register(sock.fileno(), _IN)
        tick = 0.0
        while True:
            limit = max(0.0, tick - time.monotonic()) if self._listeners else -1
            for fd, events in self._epoll.poll(limit):
                side = self._sides.get(fd)
                if side is not None:
                    self._move(side, events)
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
                elif fd == self._control.fileno():
                    self._end()
                elif fd == self._offers.fileno():
                    self._take()
            if self._listeners and time.monotonic() >= tick:
                self._look(list(self._listeners.values()))
                tick = time.monotonic() + TICK

    # ports

    def _take(self) -> None:
        data, fds, _, _ = socket.recv_fds(self._offers, 4096, MAX_SOCKETS + 1)
        if not data:
            # The runner holds the other end too, so this is its end.
            raise EOFError
        number, count = OFFER.unpack_from(data)
        ports = [_PORT.unpack_from(data, OFFER.size + 2 * one)[0] for one in range(count)]
        sockets = [socket.socket(fileno=fd) for fd in fds]
        if len(sockets) != count + 1:
            for sock in sockets:
                sock.close()
            return
        answer = sockets.pop()
        new = [Listener(sock, port, number) for sock, port in zip(sockets, ports, strict=True)]
        for one in new:
            one.sock.settimeout(0)
            self._listeners[one.sock.fileno()] = one
        self._look(new)
        with contextlib.suppress(OSError), answer:
            answer.send(b"k")

    def _look(self, listeners: list[Listener]) -> None:
        """Listen where the host does, and nowhere else."""
        answers = {port: self._ports.listens(port) for port in {one.port for one in listeners}}
        for one in listeners:
            if answers[one.port] and not one.listening:
                with contextlib.suppress(OSError):
                    one.listen()
                    self._epoll.register(one.sock.fileno(), _IN)
            elif one.listening and not answers[one.port]:
                self._close_port(one)
            elif one in self._paused:
                self._epoll.register(one.sock.fileno(), _IN)
                self._paused.remove(one)

    def _close_port(self, listener: Listener) -> None:
        if listener in self._paused:
            self._paused.remove(listener)
        elif listener.listening:
            self._epoll.unregister(listener.sock.fileno())
        if listener.listening:
            listener.refuse()

    def _end(self) -> None:
        data = self._control.recv(END.size)
        if not data:
            raise EOFError
        (number,) = END.unpack(data)
        for fd, listener in list(self._listeners.items()):
            if listener.number == number:
                self._close_port(listener)
                del self._listeners[fd]
                listener.sock.close()
        for connection in [one for one in self._connections if one.number == number]:
            self._abort(connection)

    # connections

    def _accept(self, listener: Listener) -> None:
        for _ in range(_MANY):
            try:
                accepted, _ = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    # They wait in the backlog until some of ours have ended.
                    self._epoll.unregister(listener.sock.fileno())
                    self._paused.append(listener)
                    return
                continue
            accepted.settimeout(0)
            connection = Connection(accepted, listener)
            self._connections.add(connection)
            self._connect(connection)

    def _connect(self, connection: Connection) -> None:
        """Connect to the host's port, by IPv4 and then by IPv6."""
        addresses = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
        while connection.tried < len(addresses):
            family, loopback = addresses[connection.tried]
            connection.tried += 1
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue
            sock.settimeout(0)
            code = sock.connect_ex((loopback, connection.port))
            if code not in (0, errno.EINPROGRESS):
                sock.close()
                continue
            side = connection.outside = Side(sock, connection)
            side.other, connection.inside.other = connection.inside, side
            self._sides[sock.fileno()] = side
            self._watch(side, _OUT)  # says that it is connected
            return
        self._reset(connection)

    def _reset(self, connection: Connection) -> None:
        """Reset both ends; if the host's port went down meanwhile, the next one is refused."""
        self._look([one for one in self._listeners.values() if one.port == connection.port])
        self._abort(connection)

    def _connected(self, side: Side) -> None:
        connection = side.connection
        if side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._forget(side)
            side.sock.close()
            connection.outside = None
            self._connect(connection)
            return
        connection.up = True
        for one in (side, side.other):
            one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sides[side.other.sock.fileno()] = side.other
        self._watch(side, _IN)
        self._watch(side.other, _IN)

    def _move(self, side: Side, events: int) -> None:
        if not side.connection.up:
            self._connected(side)
            return
        try:
            if side.pending and events & ~_IN:
                self._send(side)
            if events & ~_OUT and not side.ended and not side.other.pending:
                self._receive(side)
            self._settle(side)
        except OSError:
            self._reset(side.connection)

    def _receive(self, side: Side) -> None:
        try:
            count = side.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        other = side.other
        if not count:
            side.ended = True
            other.sock.shutdown(socket.SHUT_WR)
            return
        data = memoryview(self._buffer)[:count]
        try:
            sent = other.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < count:
            other.pending = bytes(data[sent:])

    def _send(self, side: Side) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = side.sock.send(side.pending)
            side.pending = memoryview(side.pending)[sent:]

    def _settle(self, side: Side) -> None:
        """Watch for what can be done next; close a connection that is over."""
        other = side.other
        if side.ended and other.ended and not side.pending and not other.pending:
            self._close(side.connection)
            return
        for one in (side, other):
            reads = _IN if not one.ended and not one.other.pending else 0
            self._watch(one, reads | (_OUT if one.pending else 0))

    def _watch(self, side: Side, interest: int) -> None:
        if interest == side.interest:
            return
        fd = side.sock.fileno()
        # What nothing is wanted of is not watched: the kernel would tell of its end for ever.
        if not side.interest:
            self._epoll.register(fd, interest)
        elif interest:
            self._epoll.modify(fd, interest)
        else:
            self._epoll.unregister(fd)
        side.interest = interest

    def _forget(self, side: Side) -> None:
        self._watch(side, 0)
        self._sides.pop(side.sock.fileno(), None)

    def _close(self, connection: Connection) -> None:
        self._connections.discard(connection)
        for side in (connection.inside, connection.outside):
            if side is not None:
                self._forget(side)
                side.sock.close()

    def _abort(self, connection: Connection) -> None:
        """Reset both ends."""
        for side in (connection.inside, connection.outside):
            if side is not None:
                with contextlib.suppress(OSError):
                    side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._close(connection)
