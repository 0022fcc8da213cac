"""Make switches without a bridge: nftables(8) forwards packets of one port to the others.

To delete a bridge takes the kernel a grace period of RCU, some 20 ms, in which no device in
the whole system can be made or changed; rules go in a moment, with the namespace that they
are in. So a switch begins as a crossbar, and becomes a bridge when a test changes it
(`switchboard`).

Each port has a chain where packets come in. What is for the hardware address of another
host on the switch leaves by that host's port, all else by all others. A bridge learns
addresses instead; the difference shows if one host takes on the address of another.

A switch is a table of the family netdev in the fabric. Encoded by hand: tables go to the
kernel in one message, whose making takes less time than to import what could make it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, final

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux import netlink
from pytest_nsisolate.core.linux.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    message,
    nested,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Rules grow with the square of the ports: sixteen take 2 ms to make, where a bridge takes one.
MAX_PORTS = 8

_STAGE = "network: set up a switch"
# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter.h
_BEGIN, _END, _NFTABLES = 0x10, 0x11, 10
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = (_NFTABLES << 8 | number for number in (0, 2, 3, 6))
_NETDEV = 5
#: Of a message, after its header: family, version, resource (struct nfgenmsg).
_GENERIC = struct.Struct("=BB2s")
_ANSWER = 64 << 10
#: Sequence numbers: of the message whose answer is the last one, and of all others.
_LAST, _OTHER = 2, 1


class Socket(NamedTuple):
    """Where a host is plugged in: a device of the fabric, and the host's hardware address."""

    device: int
    name: str
    mac: str


def put_up(switch: str, ports: Sequence[Socket]) -> bytes:
    """Return the request that makes a switch of that name."""
    messages = [(_NEWTABLE, NLM_F_CREATE, text(1, switch))]
    for port in ports:
        others = [other for other in ports if other is not port]
        hook = _number(1, 0) + _number(2, 0) + text(3, port.name)  # ingress, priority, device
        body = text(1, switch) + text(3, port.name) + nested(4, hook) + text(7, "filter")
        messages.append((_NEWCHAIN, NLM_F_CREATE, body))
        rules = [_is_for(other.mac) + _hand_on([other]) for other in others]
        # What there is one way for needs no look at its address.
        for rule in [*(rules if len(rules) > 1 else ()), _hand_on(others)]:
            body = text(1, switch) + text(2, port.name) + nested(4, rule)
            messages.append((_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body))
    return _request(messages)


def take_down(switch: str) -> bytes:
    """Return the request that removes it."""
    return _request([(_DELTABLE, 0, text(1, switch))])


def _request(messages: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Make one request of *messages*: all take effect or none, and the last is answered."""
    frame = _GENERIC.pack(0, 0, struct.pack(">H", _NFTABLES))
    family = _GENERIC.pack(_NETDEV, 0, bytes(2))
    *most, (kind, flags, body) = messages
    return b"".join(
        (
            message(_BEGIN, 0, frame, _OTHER),
            *(message(kind, flags, family + body, _OTHER) for kind, flags, body in most),
            message(kind, flags | NLM_F_ACK, family + body, _LAST),
            message(_END, 0, frame, _OTHER),
        )
    )


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


# Expressions work on registers, of which these take the first.


def _expression(name: str, data: bytes) -> bytes:
    return nested(1, text(1, name) + nested(2, data))


def _is_for(mac: str) -> bytes:
    """Go on with a rule for packets to this address alone."""
    address = bytes.fromhex(mac.replace(":", ""))
    load = _number(1, 1) + _number(2, 0) + _number(3, 0) + _number(4, len(address))  # link layer
    compare = _number(1, 1) + _number(2, 0) + nested(3, attribute(1, address))  # equal
    return _expression("payload", load) + _expression("cmp", compare)


def _hand_on(ports: Sequence[Socket]) -> bytes:
    """Send a copy to all but the last of these ports, and the packet itself to the last."""
    parts = []
    for port in ports:
        device = nested(2, attribute(1, struct.pack("=I", port.device)))
        parts.append(_expression("immediate", _number(1, 1) + device))
        last = port is ports[-1]
        parts.append(
            _expression("fwd", _number(1, 1)) if last else _expression("dup", _number(2, 1))
        )
    return b"".join(parts)


@final
class Rules:
    """A socket by which the rules of one network namespace are changed.

    Raises:
        StageError: there can be none.
    """

    def __init__(self) -> None:
        self._socket = netlink.open_socket(netlink.NETLINK_NETFILTER, _STAGE)

    def close(self) -> None:
        self._socket.close()

    def carry_out(self, request: bytes) -> None:
        """Send a request of `put_up` or `take_down` to the kernel.

        Raises:
            StageError: this kernel or this process can't, and nothing of it is done.
        """
        answers: list[tuple[int, int]] = []
        try:
            self._socket.send(request)
            # The kernel has answered by now, or never will.
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = self._socket.recv(_ANSWER, socket.MSG_DONTWAIT)
                    answers += [
                        (number, netlink.error_of(body))
                        for kind, number, body in netlink.messages(data)
                        if kind == netlink.NLMSG_ERROR
                    ]
        except OSError as error:
            raise StageError(_STAGE, error.errno or errno.EIO) from None
        refused = [code for _, code in answers if code]
        if refused or (_LAST, 0) not in answers:
            raise StageError(_STAGE, refused[0] if refused else errno.EIO)
