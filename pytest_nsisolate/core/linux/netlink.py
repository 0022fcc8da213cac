"""Messages of netlink(7): headers, attributes and answers.

A message is a header, a fixed part that depends on its type, and attributes. The kernel
answers with messages of the same form. Numbers have the byte order of the machine, but for
those of nftables.

Assumes: the relay, the keeper and PID 1 of a sandbox load this module, so it imports little.
"""

from __future__ import annotations

import errno
import socket
import struct

from pytest_nsisolate.core.errors import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h: protocols, types and flags of messages
NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 0, 4, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLA_F_NESTED = 0x8000

# linux/rtnetlink.h: types and fixed parts of messages
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_SETNEIGHTBL = 20, 24, 26, 67
IFINFOMSG = struct.Struct("=BxHiII")
IFADDRMSG = struct.Struct("=BBBBI")
RTMSG = struct.Struct("=BBBBBBBBI")

# linux/if.h
IFF_UP, IFF_RUNNING = 0x1, 0x40

#: struct nlmsghdr: length, type, flags, sequence number, port.
HEADER = struct.Struct("=IHHII")
#: struct nlattr: length, type.
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
#: Messages and attributes begin at multiples of this.
_ALIGNED = 4


def open_socket(protocol: int, stage: str, groups: int = 0) -> socket.socket:
    """Open a socket to the kernel, in the network namespace of this thread.

    Args:
        groups: events that it receives.

    Raises:
        StageError: stage is *stage*.
    """
    try:
        found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    except OSError as error:
        raise StageError.of(stage, error) from None
    try:
        if groups:
            found.bind((0, groups))
    except OSError as error:
        found.close()
        raise StageError.of(stage, error) from None
    return found


def message(kind: int, flags: int, body: bytes, number: int = 0) -> bytes:
    """Encode a request.

    Args:
        number: the sequence number, by which the answer is known.
    """
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Encode an attribute."""
    padding = b"\0" * (-len(value) % _ALIGNED)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def nested(kind: int, attributes: bytes) -> bytes:
    """Encode an attribute that is made of attributes, and says so, as nftables needs it."""
    return attribute(kind | _NLA_F_NESTED, attributes)


def text(kind: int, value: str) -> bytes:
    """Encode an attribute that is a string."""
    return attribute(kind, value.encode() + b"\0")


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Decode what the kernel sent: type, sequence number and body of each message.

    A message that is cut is left out, with all that follows it.
    """
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, number, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield kind, number, data[at + HEADER.size : at + length]
        at += _aligned(length)


def error_of(body: bytes) -> int:
    """Decode the body of an answer of type `NLMSG_ERROR`: an errno, 0 if it acknowledges."""
    if len(body) < _ERROR.size:
        return errno.EIO
    number: int = _ERROR.unpack_from(body)[0]
    return -number


def find(attributes: bytes, wanted: int) -> bytes | None:
    """Return the value of the first attribute of type *wanted*; None if there is none."""
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return None
        if kind == wanted:
            return attributes[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return None


def _aligned(length: int) -> int:
    return (length + _ALIGNED - 1) & -_ALIGNED
