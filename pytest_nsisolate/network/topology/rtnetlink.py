"""Send requests for links, addresses and routes to the kernel over one netlink socket.

A batch of operations (`link_messages`) is one system call. A plain socket, and not pyroute2's:
it works inside a running event loop and in a fork.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, final

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux import netlink
from pytest_nsisolate.core.linux.netlink import (
    HEADER,
    IFF_UP,
    IFINFOMSG,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTMSG,
)

from .link_messages import BLANK, LOOPBACK, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# linux/rtnetlink.h, linux/if_link.h: attributes
_DESTINATION, _DEVICE = 1, 4
_OPERSTATE, _OPER_UP = 16, 6

#: Of one system call: bytes, and messages, since their answers have to wait for the reader.
_CHUNK, _MESSAGES = 64 << 10, 64
_ANSWER = 256 << 10


class Batch(NamedTuple):
    """Operations with their messages ready."""

    operations: tuple[Operation, ...]
    chunks: tuple[bytes, ...]
    #: Where in which chunk the descriptor of which namespace is to be filled in.
    blanks: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> Batch:
        chunks = [bytearray()]
        blanks = []
        for number, operation in enumerate(operations, 1):
            message = operation.message()
            length, kind, flags, _, _ = HEADER.unpack_from(message)
            if len(chunks[-1]) + length > _CHUNK or number % _MESSAGES == 0:
                chunks.append(bytearray())
            place = getattr(operation, "place", -1)
            if place >= 0:
                at = message.index(struct.pack("=I", BLANK + place))
                blanks.append((len(chunks) - 1, len(chunks[-1]) + at, place))
            header = HEADER.pack(length, kind, flags | NLM_F_ACK, number, 0)
            chunks[-1] += header + message[HEADER.size :]
        return cls(tuple(operations), tuple(bytes(chunk) for chunk in chunks), tuple(blanks))


@final
class Netlink:
    """A socket in the network namespace that its thread is in when it is made.

    Raises:
        StageError: there can be none.
    """

    def __init__(self) -> None:
        self._socket = netlink.open_socket(netlink.NETLINK_ROUTE, "network: open a socket")

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def run(self, batch: Batch, places: Sequence[int] = ()) -> None:
        """Carry out all of *batch*.

        Args:
            places: descriptors of the namespaces that the operations number.

        Raises:
            StageError: of the first that failed; those after it were tried, too.
        """
        for number, chunk in enumerate(batch.chunks):
            data = bytearray(chunk)
            for at_chunk, at, place in batch.blanks:
                if at_chunk == number:
                    struct.pack_into("=I", data, at, places[place])
            self._exchange(batch, data)

    def do(self, *operations: Operation) -> None:
        """Encode and carry out these operations."""
        if operations:
            self.run(Batch.of(operations))

    def _exchange(self, batch: Batch, data: bytearray) -> None:
        if not data:
            return
        waiting = set()
        at = 0
        while at < len(data):
            length, _, _, number, _ = HEADER.unpack_from(data, at)
            waiting.add(number)
            at += length
        failed: tuple[int, int] | None = None
        try:
            self._socket.send(data)
            while waiting:
                for kind, number, body in netlink.messages(self._socket.recv(_ANSWER)):
                    if kind != NLMSG_ERROR or number not in waiting:
                        continue
                    waiting.discard(number)
                    code = netlink.error_of(body)
                    forgiven = batch.operations[number - 1].forgiven
                    if code and code not in forgiven and (failed is None or number < failed[0]):
                        failed = (number, code)
        except OSError as error:
            raise StageError("network: talk with the kernel", error.errno or errno.EIO) from None
        if failed is not None:
            operation = batch.operations[failed[0] - 1]
            raise StageError(operation.stage, failed[1], operation.subject)

    def states(self) -> dict[int, bool]:
        """Return, by index of each device that is set up, whether it can pass packets by now."""
        found: dict[int, bool] = {}
        for body in self._dump(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0)):
            _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
            if flags & IFF_UP and index != LOOPBACK:
                found[index] = netlink.find(body[IFINFOMSG.size :], _OPERSTATE) == bytes([_OPER_UP])
        return found

    def routes(self, family: int) -> list[tuple[bytes, int, int]]:
        """List the routes of a family: address, number of bits, and index of the device.

        The family's own addresses are among them; default routes are not.

        Raises:
            StageError: EOPNOTSUPP is that this kernel has not that family.
        """
        found = []
        for body in self._dump(RTM_GETROUTE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, *_ = RTMSG.unpack_from(body)
            destination = netlink.find(body[RTMSG.size :], _DESTINATION)
            device = netlink.find(body[RTMSG.size :], _DEVICE)
            if body[0] == family and destination is not None:
                index = int.from_bytes(device, sys.byteorder) if device is not None else 0
                found.append((destination, length, index))
        return found

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Request all objects of a kind from the kernel, and yield their bodies."""
        try:
            self._socket.send(netlink.message(kind, NLM_F_DUMP, body))
            while True:
                for answer, _, data in netlink.messages(self._socket.recv(_ANSWER)):
                    if answer == NLMSG_DONE:
                        return
                    if answer == NLMSG_ERROR:
                        code = netlink.error_of(data)
                        raise StageError("network: ask the kernel", code or errno.EIO)
                    yield data
        except OSError as error:
            raise StageError("network: talk with the kernel", error.errno or errno.EIO) from None

    def wait_up(self, indexes: set[int], seconds: float = 30) -> None:
        """Wait until these devices pass packets.

        Raises:
            StageError: ETIMEDOUT.
        """
        # Their carrier is there already; the kernel tells their queues of it from a work
        # queue, a moment later.
        deadline = time.monotonic() + seconds
        while True:
            states = self.states()
            late = [index for index in indexes if not states.get(index, False)]
            if not late:
                return
            if time.monotonic() > deadline:
                raise StageError("network: wait for links", errno.ETIMEDOUT, f"device {late[0]}")
            time.sleep(0.0002)


def open_namespace() -> int:
    """Open the network namespace that this thread is in."""
    try:
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StageError("network: open the namespace", error.errno or errno.EIO) from None
