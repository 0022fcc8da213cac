"""What is encoded by hand has the bytes that pyroute2 makes; what can't be compared is decoded."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux import link_setup, netlink
from pytest_nsisolate.network.topology import nft_switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_nsisolate.core.linux.link_setup import Message

if sys.platform != "linux":
    pytest.skip("netlink is Linux's", allow_module_level=True)

pytest.importorskip("pyroute2")

from pyroute2.netlink.diag import inet_diag_req
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pytest_nsisolate.network.topology.link_messages import encode
from pytest_nsisolate.network.uplink import relay

NESTED = 0x8000
MADE = 0x600  # NLM_F_CREATE | NLM_F_EXCL
NO_ADDRESSES = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}

LINKS: list[tuple[Message, int, int, dict[str, Any]]] = [
    (link_setup.up(7, "eth0"), 16, 0, {"flags": 1, "change": 1}),
    (link_setup.up(7, "eth0", acknowledge=True), 16, 4, {"flags": 1, "change": 1}),
    (link_setup.remove(7, "eth0"), 17, 0, {}),
    (
        link_setup.no_automatic_addresses(7, "eth0"),
        16,
        0,
        {"attrs": [("IFLA_AF_SPEC", NO_ADDRESSES)]},
    ),
]


@pytest.mark.parametrize(
    ("ours", "kind", "flags", "values"), LINKS, ids=[one[0].describe() for one in LINKS]
)
def test_links(ours: Message, kind: int, flags: int, values: dict[str, Any]) -> None:
    assert ours.message() == encode(ifinfmsg(), kind, flags, {"index": 7, **values})


@pytest.mark.parametrize(
    ("text", "length", "label", "scope"),
    [
        ("198.18.0.2", 30, "", 0),
        ("127.0.1.1", 8, "lo:1", 254),
        ("fe80::2", 64, "", 253),
        ("fd00::2", 64, "", 0),
    ],
)
def test_addresses(text: str, length: int, label: str, scope: int) -> None:
    six = ":" in text
    values = {
        "family": socket.AF_INET6 if six else socket.AF_INET,
        "prefixlen": length,
        "flags": 2 if six else 0,  # IFA_F_NODAD
        "scope": scope,
        "index": 7,
        "attrs": [("IFA_ADDRESS", text), ("IFA_LOCAL", text)]
        + ([("IFA_LABEL", label)] if label else []),
    }
    expected = encode(ifaddrmsg(), 20, MADE, values)
    assert link_setup.address(7, text, length, label).message() == expected


def route(table: int, scope: int, kind: int, *attributes: tuple[str, Any], **values: int) -> bytes:
    attrs = [*attributes, ("RTA_OIF", 7)]
    values = {"table": table, "proto": 4, "scope": scope, "type": kind, **values}
    flags = 0x400 if attributes[0][0] == "RTA_GATEWAY" else MADE
    return encode(rtmsg(), 24, flags, {**values, "attrs": attrs})


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (
            link_setup.default_route(7, "198.18.0.1"),
            lambda: route(254, 0, 1, ("RTA_GATEWAY", "198.18.0.1"), family=socket.AF_INET),
        ),
        (
            link_setup.default_route(7, "fe80::1"),
            lambda: route(254, 0, 1, ("RTA_GATEWAY", "fe80::1"), family=socket.AF_INET6),
        ),
        (
            link_setup.multicast_route(7),
            lambda: route(254, 253, 1, ("RTA_DST", "224.0.0.0"), family=2, dst_len=4),
        ),
        (
            link_setup.broadcast_route(7),
            lambda: route(255, 253, 3, ("RTA_DST", "255.255.255.255"), family=2, dst_len=32),
        ),
    ],
    ids=["ipv4", "ipv6", "multicast", "broadcast"],
)
def test_routes(ours: Message, expected: Callable[[], bytes]) -> None:
    assert ours.message() == expected()


def test_forwarding_of_a_link() -> None:
    """pyroute2 knows IFLA_INET_CONF only as the kernel reports it, not as it takes it."""
    ((kind, _, body),) = netlink.messages(link_setup.keep_in(7, "eth0").message())
    assert (kind, netlink.IFINFOMSG.unpack_from(body)[2]) == (19, 7)
    found: bytes | None = body[netlink.IFINFOMSG.size :]
    for wanted in (26, socket.AF_INET, 1, 1):  # IFLA_AF_SPEC, AF_INET, IFLA_INET_CONF, FORWARDING
        assert found is not None
        found = netlink.find(found, wanted)
    assert found == struct.pack("=I", 0)


# nftables


def plain(attributes: bytes) -> bytes:
    """The attributes without the flag of those that are nested: pyroute2 leaves it out."""
    found, at = b"", 0
    while at < len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        value = attributes[at + 4 : at + length]
        found += netlink.attribute(kind & ~NESTED, plain(value) if kind & NESTED else value)
        at += (length + 3) & ~3
    return found


def requests(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and attributes of each message of nftables."""
    for kind, _, body in netlink.messages(data):
        yield kind, plain(body[4:])


def theirs(message: Any, kind: int, *attributes: tuple[str, Any]) -> tuple[int, bytes]:
    data = encode(message, kind, 0, {"attrs": list(attributes)})
    ((_, _, body),) = netlink.messages(data)
    return kind, body[4:]


def expression(name: str, *attributes: tuple[str, Any]) -> dict[str, Any]:
    data = {"attrs": list(attributes)}
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", data)]}


def test_switch_of_two_ports() -> None:
    ports = [nft_switch.Socket(1000 + n, f"p0.{n}", f"02:00:00:00:00:0{n}") for n in range(2)]
    begin, table, chain, *_, end = requests(nft_switch.put_up("s0", ports))
    assert (begin[0], end[0]) == (0x10, 0x11)
    assert table == theirs(nft_table_msg(), 0xA00, ("NFTA_TABLE_NAME", "s0"))
    hook = [("NFTA_HOOK_HOOKNUM", 0), ("NFTA_HOOK_PRIORITY", 0), ("NFTA_HOOK_DEV", "p0.0")]
    assert chain == theirs(
        nft_chain_msg(),
        0xA03,
        ("NFTA_CHAIN_TABLE", "s0"),
        ("NFTA_CHAIN_NAME", "p0.0"),
        ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ("NFTA_CHAIN_TYPE", "filter"),
    )
    _, gone, _ = requests(nft_switch.take_down("s0"))
    assert gone == theirs(nft_table_msg(), 0xA02, ("NFTA_TABLE_NAME", "s0"))


def test_rule_for_one_address() -> None:
    """The last expression, "fwd", is one that pyroute2 0.9 can't encode."""
    ports = [nft_switch.Socket(1000 + n, f"p0.{n}", f"02:00:00:00:00:0{n}") for n in range(3)]
    _, _, _, (kind, rule), *_ = requests(nft_switch.put_up("s0", ports))
    address = {"attrs": [("NFTA_DATA_VALUE", bytes.fromhex("020000000001"))]}
    device = {"attrs": [("NFTA_DATA_VALUE", struct.pack("=I", 1001))]}
    expressions = [
        expression(
            "payload",
            ("NFTA_PAYLOAD_DREG", 1),
            ("NFTA_PAYLOAD_BASE", 0),
            ("NFTA_PAYLOAD_OFFSET", 0),
            ("NFTA_PAYLOAD_LEN", 6),
        ),
        expression("cmp", ("NFTA_CMP_SREG", 1), ("NFTA_CMP_OP", 0), ("NFTA_CMP_DATA", address)),
        expression("immediate", ("NFTA_IMMEDIATE_DREG", 1), ("NFTA_IMMEDIATE_DATA", device)),
    ]
    their_kind, their_rule = theirs(
        nft_rule_msg(),
        0xA06,
        ("NFTA_RULE_TABLE", "s0"),
        ("NFTA_RULE_CHAIN", "p0.0"),
        ("NFTA_RULE_EXPRESSIONS", expressions),
    )
    assert kind == their_kind
    for attribute in (1, 2):
        assert netlink.find(rule, attribute) == netlink.find(their_rule, attribute)
    ours, expected = netlink.find(rule, 4), netlink.find(their_rule, 4)
    assert ours is not None
    assert expected is not None
    forward = netlink.text(1, "fwd") + netlink.attribute(
        2, netlink.attribute(1, struct.pack(">I", 1))
    )
    assert ours == expected + netlink.attribute(1, forward)


# sock_diag


class Kernel:
    """Keeps what is sent, and answers with *answer*."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, size: int) -> bytes:
        return self.answer[:size]


def error(number: int) -> bytes:
    return netlink.HEADER.pack(20, netlink.NLMSG_ERROR, 0, 0, 0) + struct.pack("=i", -number)


@pytest.mark.parametrize(
    ("answer", "listens"),
    [
        (netlink.HEADER.pack(20, 20, 0, 0, 0) + bytes([2, 10, 0, 0]), True),
        (netlink.HEADER.pack(20, 20, 0, 0, 0) + bytes([2, 1, 0, 0]), False),
        (error(errno.ENOENT), False),
        (error(errno.EPERM), True),  # the kernel can't say
        (b"", True),
    ],
    ids=["listens", "is-connected", "ENOENT", "EPERM", "cut"],
)
def test_question_for_a_port(answer: bytes, *, listens: bool) -> None:
    ports: Any = relay.Ports()
    if ports._diag is not None:
        ports._diag.close()
    ports._diag = kernel = Kernel(answer)
    assert ports.listens(8080) is listens
    request = inet_diag_req()
    loopback = (0x7F000001, 0, 0, 0)
    values = {
        "sdiag_family": socket.AF_INET,
        "sdiag_protocol": socket.IPPROTO_TCP,
        "idiag_states": 1 << 10,
        "idiag_sport": 8080,
        "idiag_src": loopback,
        "idiag_dst": loopback,
        "idiag_cookie": (1 << 64) - 1,
    }
    assert kernel.sent[0] == encode(request, 20, 0, values)


# the codec


def test_answers() -> None:
    """A message that is cut ends what is read; padding does not count."""
    first = netlink.message(16, netlink.NLM_F_ACK, b"abc", 5)
    assert netlink.HEADER.unpack_from(first) == (19, 16, 5, 5, 0)
    data = first + b"\0" + netlink.message(3, 0, b"", 6)
    assert list(netlink.messages(data)) == [(16, 5, b"abc"), (3, 6, b"")]
    assert list(netlink.messages(data[:-1])) == [(16, 5, b"abc")]
    assert list(netlink.messages(struct.pack("=IHHII", 3, 1, 0, 0, 0))) == []
    assert netlink.error_of(struct.pack("=i", -errno.EPERM)) == errno.EPERM
    assert netlink.error_of(struct.pack("=i", 0)) == 0
    assert netlink.error_of(b"") == errno.EIO


def test_attributes() -> None:
    data = netlink.attribute(1, b"a") + netlink.text(2, "bc") + netlink.attribute(1, b"later")
    assert len(data) % 4 == 0
    assert (netlink.find(data, 1), netlink.find(data, 2)) == (b"a", b"bc\0")
    assert netlink.find(data, 3) is None
    assert netlink.find(b"\0\0\1\0" + data, 1) is None, "a length of 0 would never end"


def test_the_kernel_refuses() -> None:
    """The error is that of the first message."""
    bad = link_setup.up(0x7FFFFFFF, "none", acknowledge=True)
    with pytest.raises(StageError) as caught:
        link_setup.configure(bad.message())
    assert caught.value.stage == "bring lo up"
    assert caught.value.errno in (errno.ENODEV, errno.EPERM)
    with pytest.raises(StageError) as caught:
        netlink.open_socket(1 << 20, "open it")
    assert (caught.value.stage, caught.value.errno) == ("open it", errno.EPROTONOSUPPORT)
