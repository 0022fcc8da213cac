"""The few messages of rtnetlink(7) that set up one end of a link, encoded by hand.

For what is done once per test, inside of its sandbox and on the host: pyroute2 takes longer to
encode one (`linkops`) than the kernel to carry out all. `rtnl.Netlink` sends them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from .errors import StageError
from .kernel_files import is_set

if TYPE_CHECKING:
    from pytest_nsisolate.network.topology.rtnetlink import Netlink

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg
_RTMSG = struct.Struct("=BBBBBBBBI")  # rtmsg
_IFREQ = struct.Struct("16s24x")

_NEWLINK, _DELLINK, _SETLINK, _NEWADDR, _NEWROUTE = 16, 17, 19, 20, 24
_REQUEST, _ACKNOWLEDGE, _CREATE, _EXCL = 0x1, 0x4, 0x400, 0x200
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927
_RTMGRP_LINK = 1
#: How long both ends of a link may take to see each other, in seconds.
_CARRIER_LIMIT = 10


class Message(NamedTuple):
    """A `linkops.Operation` that is encoded already; *stage* and *subject* are for its error."""

    stage: str
    subject: str
    kind: int
    flags: int
    body: bytes
    forgiven: tuple[int, ...] = ()

    def describe(self) -> str:
        """What it does, in half a line."""
        return f"{self.stage} {self.subject}".rstrip()

    def message(self) -> bytes:
        """It, with the header that the sender completes."""
        length = _HEADER.size + len(self.body)
        return _HEADER.pack(length, self.kind, _REQUEST | self.flags, 0, 0) + self.body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute of a message, padded."""
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _link(index: int, flags: int, attributes: bytes = b"") -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attributes


def up(index: int, name: str, *, acknowledge: bool = False) -> Message:
    """Bring a link up."""
    flags = _ACKNOWLEDGE if acknowledge else 0
    return Message("bring up the link", name, _NEWLINK, flags, _link(index, _IFF_UP))


def no_automatic_addresses(index: int, name: str) -> Message:
    """Give it no IPv6 address when it comes up: the kernel would first ask around for it."""
    mode = attribute(8, b"\1")  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
    attributes = attribute(26, attribute(socket.AF_INET6, mode))  # IFLA_AF_SPEC
    return Message("set up the link", name, _NEWLINK, 0, _link(index, 0, attributes))


def keep_in(index: int, name: str) -> Message:
    """Let the host hand on nothing of IPv4 that comes in by this link."""
    setting = attribute(1, struct.pack("=I", 0))  # IPV4_DEVCONF_FORWARDING
    family = attribute(socket.AF_INET, attribute(1, setting))  # IFLA_INET_CONF
    # A request by which links are made, too, would not look at it.
    return Message("keep packets in", name, _SETLINK, 0, _link(index, 0, attribute(26, family)))


def address(index: int, text: str, length: int, label: str = "") -> Message:
    """Give a link an address, to be used at once; one of IPv4 may have a name of its own."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    packed = socket.inet_pton(family, text)
    flags, scope = (0x02, 0) if family == socket.AF_INET6 else (0, 0)  # IFA_F_NODAD
    if text.startswith("fe80:"):
        scope = 253  # RT_SCOPE_LINK
    elif text.startswith("127."):
        scope = 254  # RT_SCOPE_HOST
    body = _IFADDR.pack(family, length, flags, scope, index)
    body += attribute(1, packed) + attribute(2, packed)  # IFA_ADDRESS, IFA_LOCAL
    if label:
        body += attribute(3, label.encode() + b"\0")  # IFA_LABEL
    return Message("add the address", text, _NEWADDR, _CREATE | _EXCL, body)


def default_route(index: int, gateway: str) -> Message:
    """Send what is for nobody near to *gateway*."""
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    # RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST
    body = _RTMSG.pack(family, 0, 0, 0, 254, 4, 0, 1, 0)
    body += attribute(5, socket.inet_pton(family, gateway))  # RTA_GATEWAY
    body += attribute(4, struct.pack("=i", index))  # RTA_OIF
    return Message("add the route", f"default via {gateway}", _NEWROUTE, _CREATE, body)


def multicast_route(index: int) -> Message:
    """Send what is for a group of IPv4 out of a link, where the sender names none."""
    # RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST
    return _link_route(index, "224.0.0.0", 4, (254, 4, 253, 1))


def broadcast_route(index: int) -> Message:
    """Send what is for all of an unnamed IPv4 network out of a link."""
    # RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_LINK, RTN_BROADCAST
    return _link_route(index, "255.255.255.255", 32, (255, 4, 253, 3))


def _link_route(index: int, text: str, length: int, kind: tuple[int, int, int, int]) -> Message:
    body = _RTMSG.pack(socket.AF_INET, length, 0, 0, *kind, 0)
    body += attribute(1, socket.inet_aton(text))  # RTA_DST
    body += attribute(4, struct.pack("=i", index))  # RTA_OIF
    return Message("add the route", f"{text}/{length}", _NEWROUTE, _CREATE | _EXCL, body)


def remove(index: int, name: str) -> Message:
    """Delete a link; the end inside goes with the host's."""
    return Message("remove the link", name, _DELLINK, 0, _link(index, 0))


def open_events() -> socket.socket:
    """A socket that is told of changes of links in the network namespace of this process."""
    try:
        found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        found.bind((0, _RTMGRP_LINK))
    except OSError as error:
        raise StageError("open a netlink socket", error.errno or errno.EIO) from None
    return found


def _ask(control: socket.socket, request: int, name: str) -> bytes:
    try:
        return fcntl.ioctl(control.fileno(), request, _IFREQ.pack(name.encode()))
    except OSError as error:
        raise StageError("find the link", error.errno or errno.EIO, name) from None


def index_of(name: str) -> int:
    """The index of a link.

    Raises:
        StageError: it is not there.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise StageError("find the link", error.errno or errno.ENODEV, name) from None


def mac_of(name: str) -> bytes:
    """The hardware address of a link."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return _ask(control, _SIOCGIFHWADDR, name)[18:24]


def wait_for_carrier(events: socket.socket, control: Netlink, index: int, name: str) -> None:
    """Wait until packets get through a link that is up.

    The kernel starts the queues of both ends, one after the other, some time after the
    second has come up; before that it drops what is sent. It holds one lock over both, and
    a change of the link has to take the same lock.

    Args:
        events: `open_events`, from before the link was brought up.
    """
    events.settimeout(_CARRIER_LIMIT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        while not struct.unpack_from("=H", _ask(asker, _SIOCGIFFLAGS, name), 16)[0] & _IFF_RUNNING:
            try:
                events.recv(65536)
            except OSError as error:
                raise StageError(
                    "wait for the link", error.errno or errno.ETIMEDOUT, name
                ) from None
    control.do(up(index, name))


def has_ipv6() -> bool:
    """Whether new links of this network namespace can have IPv6 addresses."""
    return os.path.exists("/proc/sys/net/ipv6/conf/") and not any(
        is_set(f"net.ipv6.conf.{which}.disable_ipv6") for which in ("all", "default")
    )
