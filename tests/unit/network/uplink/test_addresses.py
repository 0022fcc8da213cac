"""Which addresses a slot and its links have."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations

import pytest

from pytest_nsisolate.network.uplink.addresses import Ranges
from pytest_nsisolate.network.uplink.resolv_conf import for_nat
from pytest_nsisolate.spec.keys import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "slots", "links"),
    [
        ("198.18.0.0/15", 512, 64),
        ("10.0.0.0/8", 1024, 64),
        ("10.0.0.0/20", 16, 64),
        ("10.0.0.0/22", 16, 16),
        ("10.0.0.0/24", 16, 4),
    ],
)
def test_a_range_is_shared_out(text: str, slots: int, links: int) -> None:
    ranges = Ranges.parse(text, "here")
    assert (ranges.slots, ranges.block(0).links) == (slots, links)
    last = ranges.block(slots - 1)
    assert last.ipv4.subnet_of(ranges.ipv4)
    assert last.ipv6.subnet_of(ranges.ipv6)
    assert IPv4Network(last.link(links - 1).address).subnet_of(last.ipv4)


def test_no_two_links_have_anything_in_common() -> None:
    ranges = Ranges()
    blocks = [ranges.block(slot) for slot in (0, 1, 255, 256, 511)]
    for one, other in combinations(blocks, 2):
        assert not one.ipv4.overlaps(other.ipv4)
        assert not one.ipv6.overlaps(other.ipv6)
    links = [block.link(index) for block in blocks for index in range(block.links)]
    for values in zip(*links, strict=True):
        assert len(set(values)) == len(links)
    for block in blocks:
        for index in range(block.links):
            link = block.link(index)
            assert block.of_mac(link.mac) == link
            first = IPv4Network(f"{link.gateway}/30", strict=False)
            assert IPv4Network(link.address).subnet_of(first)
            assert first.subnet_of(block.ipv4)
            wide = IPv6Network(f"{link.gateway6}/64", strict=False)
            assert IPv6Network(link.address6).subnet_of(wide)
            assert wide.subnet_of(block.ipv6)


def test_names_fit() -> None:
    """IFNAMSIZ is 16, with the zero at the end; no slot's names begin as another's do."""
    ranges = Ranges.parse("10.0.0.0/8", "here")
    assert len(ranges.block(1023).name(10**9 - 1)) <= 15
    prefixes = [ranges.block(slot).prefix for slot in range(ranges.slots)]
    assert not [a for a in prefixes for b in prefixes if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    ("route", "overlaps"),
    [
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("198.18.1.0/24", False),
        ("198.18.0.0/24", True),
        ("198.18.0.255/32", True),
        ("198.0.0.0/8", True),
        ("10.0.0.0/8", False),
        ("fd6e:7369:736f::/48", True),
        ("fd6e:7369:736f:3f::1/128", True),
        ("fd6e:7369:736f:40::1/128", False),
    ],
)
def test_overlapping(route: str, overlaps: bool) -> None:  # noqa: FBT001 -- a table of cases
    found = Ranges().block(0).overlapped_by([ip_network(route)])
    assert found == (route if overlaps else None)


def test_both_ranges_can_be_set() -> None:
    ranges = Ranges.parse("fd12::/40, 10.0.0.0/16", "here")
    assert str(ranges) == "10.0.0.0/16 fd12::/40"
    with pytest.raises(SpecError, match=r"^here: subnet='x' is not allowed; allowed: an IPv4"):
        Ranges.parse("x", "here")


STUB = "# by systemd\nnameserver 127.0.0.53\noptions edns0\nsearch example.org\n"


@pytest.mark.parametrize(
    ("text", "behind", "found"),
    [
        ("nameserver 10.0.0.1\n", None, "nameserver 10.0.0.1\n"),
        (
            "nameserver 127.0.0.1\nnameserver 10.0.0.1\nsearch a\n",
            "nameserver 10.9.9.9\n",
            "nameserver 10.0.0.1\nsearch a\n",
        ),
        (STUB, "nameserver 10.9.9.9\nsearch b\n", "nameserver 10.9.9.9\nsearch b\n"),
        (STUB, None, "# by systemd\noptions edns0\nsearch example.org\n"),
        ("nameserver ::1\nnameserver fe80::1%eth0\n", None, "nameserver fe80::1%eth0\n"),
        (None, "nameserver 10.9.9.9\n", None),
    ],
)
def test_name_servers(
    tmp_path: Path, text: str | None, behind: str | None, found: str | None
) -> None:
    for name, content in (("resolv.conf", text), ("behind", behind)):
        if content is not None:
            (tmp_path / name).write_text(content)
    assert for_nat(f"{tmp_path}/resolv.conf", f"{tmp_path}/behind") == found
