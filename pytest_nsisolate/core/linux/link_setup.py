"""The few messages of rtnetlink(7) that set up one end of a link, encoded by hand.

They are for what is done for each test, in its sandbox and on the host: pyroute2 takes longer
to encode one than the kernel to carry out all. `configure` sends them, or the socket of
`network.topology.rtnetlink`.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from pytest_nsisolate.core.errors import StageError

from . import netlink
from .netlink import (
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_SETLINK,
    RTMSG,
    attribute,
)


class Message(NamedTuple):
    """An `Operation` of `network.topology.link_messages` that is encoded already.

    Attributes:
        stage, subject: what it does and to what, for a `StageError`.
        kind, flags, body: of the message.
        forgiven: error numbers that say there was nothing to do.
    """

    stage: str
    subject: str
    kind: int
    flags: int
    body: bytes
    forgiven: tuple[int, ...] = ()

    def describe(self) -> str:
        """Describe it in half a line."""
        return f"{self.stage} {self.subject}".rstrip()

    def message(self) -> bytes:
        """Encode it; the sender fills in the sequence number."""
        return netlink.message(self.kind, self.flags, self.body)


def _link(index: int, flags: int, attributes: bytes = b"") -> bytes:
    return IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attributes


def up(index: int, name: str, *, acknowledge: bool = False) -> Message:
    """Bring a link up."""
    flags = NLM_F_ACK if acknowledge else 0
    return Message("bring up the link", name, RTM_NEWLINK, flags, _link(index, IFF_UP))


def no_automatic_addresses(index: int, name: str) -> Message:
    """Give a link no IPv6 address when it comes up: the kernel would look for duplicates first."""
    mode = attribute(8, b"\1")  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
    attributes = attribute(26, attribute(socket.AF_INET6, mode))  # IFLA_AF_SPEC
    return Message("set up the link", name, RTM_NEWLINK, 0, _link(index, 0, attributes))


def keep_in(index: int, name: str) -> Message:
    """Forward no IPv4 packet that arrives on this link."""
    setting = attribute(1, struct.pack("=I", 0))  # IPV4_DEVCONF_FORWARDING
    family = attribute(socket.AF_INET, attribute(1, setting))  # IFLA_INET_CONF
    # RTM_NEWLINK ignores IFLA_INET_CONF.
    return Message("keep packets in", name, RTM_SETLINK, 0, _link(index, 0, attribute(26, family)))


def address(index: int, text: str, length: int, label: str = "") -> Message:
    """Give a link an address, usable immediately.

    Args:
        label: a name for an IPv4 address, as ifconfig(8) shows it.
    """
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    packed = socket.inet_pton(family, text)
    flags = 0x02 if family == socket.AF_INET6 else 0  # IFA_F_NODAD
    scope = 0  # RT_SCOPE_UNIVERSE
    if text.startswith("fe80:"):
        scope = 253  # RT_SCOPE_LINK
    elif text.startswith("127."):
        scope = 254  # RT_SCOPE_HOST
    body = IFADDRMSG.pack(family, length, flags, scope, index)
    body += attribute(1, packed) + attribute(2, packed)  # IFA_ADDRESS, IFA_LOCAL
    if label:
        body += netlink.text(3, label)  # IFA_LABEL
    return Message("add the address", text, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def default_route(index: int, gateway: str) -> Message:
    """Send packets without another route to *gateway*."""
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    # RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST
    body = RTMSG.pack(family, 0, 0, 0, 254, 4, 0, 1, 0)
    body += attribute(5, socket.inet_pton(family, gateway))  # RTA_GATEWAY
    body += attribute(4, struct.pack("=i", index))  # RTA_OIF
    return Message("add the route", f"default via {gateway}", RTM_NEWROUTE, NLM_F_CREATE, body)


def multicast_route(index: int) -> Message:
    """Send IPv4 multicast packets out of a link, if the sender chose no other."""
    # RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST
    return _link_route(index, "224.0.0.0", 4, (254, 4, 253, 1))


def broadcast_route(index: int) -> Message:
    """Send packets to 255.255.255.255 out of a link."""
    # RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_LINK, RTN_BROADCAST
    return _link_route(index, "255.255.255.255", 32, (255, 4, 253, 3))


def _link_route(index: int, text: str, length: int, kind: tuple[int, int, int, int]) -> Message:
    body = RTMSG.pack(socket.AF_INET, length, 0, 0, *kind, 0)
    body += attribute(1, socket.inet_aton(text))  # RTA_DST
    body += attribute(4, struct.pack("=i", index))  # RTA_OIF
    return Message(
        "add the route", f"{text}/{length}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body
    )


def remove(index: int, name: str) -> Message:
    """Delete a link; the kernel deletes its other end as well."""
    return Message("remove the link", name, RTM_DELLINK, 0, _link(index, 0))


def configure(messages: bytes) -> None:
    """Send messages in one system call; the first asks for an answer, and has to succeed.

    One of the others that fails is left out: the kernel may lack what it is about.

    Raises:
        StageError: the kernel refuses the first.
    """
    stage = "bring lo up"
    with netlink.open_socket(netlink.NETLINK_ROUTE, stage) as control:
        try:
            control.send(messages)
            answers = netlink.messages(control.recv(4096))
        except OSError as error:
            raise StageError.of(stage, error) from None
    _, _, body = next(answers, (0, 0, b""))
    number = netlink.error_of(body)
    if number:
        raise StageError(stage, number)
