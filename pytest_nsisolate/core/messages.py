"""The messages between runner, template and test process, apart from frames.

Runner and template exchange one message a packet:

    -> FORK  number, item and flags    with the descriptors of an `Order`
    -> KILL  number, signal            send a signal to that test process; if the signal is
                                       negative, to its process group
    -> END   0, item                   to a snapshot: tear down, as after that item
    <- UP    0, 0                      the template is ready
    <- PID   number, pid               forked; the pid in the template's pid namespace
    <- ENDED number, wait status       ended, stopped or continued. If it ended, with user and
                                       system CPU seconds, peak memory and I/O as text
    <- LEFT  number, 0                 with the processes that the test left running, as text
    <- FAILED number, errno            can't fork; number 0: the template itself failed,
                                       with the stage as text

The runner releases a test process with `GO` on its gate, once for each test.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from .linux.syscalls import LINUX

MESSAGE = struct.Struct("=BIq")
FORK, KILL, PID, ENDED, FAILED, UP, LEFT, END = range(1, 9)
#: The longest text after a message, in bytes.
TEXT_LIMIT = 4096
#: The most descriptors of an `Order`: six, and one for each hierarchy of cgroup v1.
MAX_FDS = 6 + 16
#: The bits of a FORK message's value that hold the flags. The item is above them.
_FLAG_BITS = 32

#: Where there are no sequenced packets (macOS), datagrams keep message boundaries too.
PACKETS = socket.SOCK_SEQPACKET if LINUX else socket.SOCK_DGRAM

#: What the runner writes to the gate: the number of failed tests so far, the item to run, and
#: the item that follows it in this process, -1 if none does.
GO = struct.Struct("=Iii")
#: In the place of the following item: the receiver is a snapshot and sets its fixtures up.
SET_UP = -2
#: A flag of an order that is no clone flag: fork a snapshot, not a test process. Its gate is a
#: socket, on which the runner later requests test processes, as from a template.
SNAPSHOT = 1


class Order(NamedTuple):
    """The runner's request for one test process.

    Attributes:
        number: of the attempt in the runner.
        item: index of the first item, or the only one, in the session.
        flags: namespaces to enter, 0 for none.
        stream: pipe for the frames.
        gate: pipe on which the runner sends `GO`.
        trace: file for native tracebacks.
        out, err: files for captured output.
        init: pidfd of the sandbox's PID 1, -1 without a sandbox.
        groups: files by which the process joins its cgroups.
    """

    number: int
    item: int
    flags: int
    stream: int
    gate: int
    trace: int
    out: int
    err: int
    init: int = -1
    groups: tuple[int, ...] = ()

    @classmethod
    def unpack(cls, number: int, value: int, fds: list[int]) -> Order:
        """Read a FORK message: its number and value, and its descriptors in the order sent."""
        stream, gate, trace, out, err, *rest = fds
        flags = value & (1 << _FLAG_BITS) - 1
        init = rest.pop(0) if flags else -1
        item = value >> _FLAG_BITS
        return cls(number, item, flags, stream, gate, trace, out, err, init, tuple(rest))

    def descriptors(self) -> list[int]:
        """List the descriptors in the order in which the runner sends them."""
        own = (self.stream, self.gate, self.trace, self.out, self.err, self.init)
        return [fd for fd in (*own, *self.groups) if fd >= 0]


def pack_fork(number: int, item: int, flags: int) -> bytes:
    """Write the FORK message that `Order.unpack` reads."""
    return MESSAGE.pack(FORK, number, item << _FLAG_BITS | flags)
