"""Work out the addresses of links between sandboxes and the host, from a slot and a number.

Pure. Every session has a block of its own out of the configured ranges, by its slot; every
link of the session has a /30 and a /64 of that block, by its index. The hardware address of
the inside says which link it is, so the inside needs no message.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Network as IPv4
from ipaddress import IPv6Network as IPv6
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.spec.keys import refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

#: 198.18.0.0/15 is set aside for tests of networks (RFC 2544), and routed nowhere.
DEFAULT4, DEFAULT6 = IPv4("198.18.0.0/15"), IPv6("fd6e:7369:736f::/48")
_ALLOWED = (
    "an IPv4 network from /8 to /24, an IPv6 network from /16 to /48, or both with a space between"
)
#: As many links as a session can have at once, and sessions on one host.
_LINKS, _SLOTS = 64, 1024
#: The name of a link inside its sandbox.
INSIDE = "eth0"
_MAC = b"\x02\x6e\x73"


class Link(NamedTuple):
    """The addresses of one link: ``gateway`` is the host's end, ``address`` the sandbox's."""

    gateway: str
    address: str
    gateway6: str
    address6: str
    mac: bytes
    host_mac: bytes


class Block(NamedTuple):
    """The addresses of one slot."""

    slot: int
    ipv4: IPv4
    ipv6: IPv6

    @property
    def links(self) -> int:
        """How many links there can be at once."""
        return min(_LINKS, self.ipv4.num_addresses // 4)

    @property
    def prefix(self) -> str:
        """What the names of the host's ends begin with; no other slot's do."""
        return f"nsv{self.slot}-"

    def name(self, number: int) -> str:
        """Return the name of the host's end of link *number*: at most 15 characters."""
        return f"{self.prefix}{number % 10**7}"

    def link(self, index: int) -> Link:
        """Return the addresses of link *index*."""
        base, base6 = self.ipv4[4 * index], self.ipv6[index << 64]
        tail = bytes((self.slot >> 8, self.slot & 0xFF, index))
        return Link(
            str(base + 1),
            str(base + 2),
            str(base6 + 1),
            str(base6 + 2),
            _MAC + tail,
            b"\x06" + _MAC[1:] + tail,
        )

    def of_mac(self, mac: bytes) -> Link:
        """Return the link whose inside has this hardware address."""
        return self.link(mac[5])

    def overlapped_by(self, routes: Iterable[IPv4 | IPv6]) -> str | None:
        """Return the first of *routes* that has addresses of this block, if any.

        Default routes have all addresses, and don't count.
        """
        for route in routes:
            mine: IPv4 | IPv6 = self.ipv4 if route.version == 4 else self.ipv6
            if route.prefixlen and route.overlaps(mine):
                return str(route)
        return None


class Ranges(NamedTuple):
    """Where the blocks of all slots are taken from."""

    ipv4: IPv4 = DEFAULT4
    ipv6: IPv6 = DEFAULT6

    @classmethod
    def parse(cls, text: str, source: str) -> Ranges:
        """Read the setting.

        Raises:
            SpecError: it is not one of the allowed values.
        """
        found: dict[str, IPv4 | IPv6] = {}
        try:
            for word in text.replace(",", " ").split():
                network = ipaddress.ip_network(word)
                key, shortest, longest = ("ipv4", 8, 24) if network.version == 4 else _OF_6
                usable = not (network.is_multicast or network.is_loopback or network.is_link_local)
                if key in found or not shortest <= network.prefixlen <= longest or not usable:
                    raise ValueError  # noqa: TRY301 -- one text for all that is wrong
                found[key] = network
        except ValueError:
            found = {}
        if not found:
            raise refusal(source, "subnet", text, _ALLOWED)
        return cls(**found)  # type: ignore[arg-type]

    @property
    def slots(self) -> int:
        """How many sessions have room."""
        return min(_SLOTS, 1 << (self._length - self.ipv4.prefixlen))

    @property
    def _length(self) -> int:
        # A small range is shared between sixteen sessions all the same.
        return max(24, self.ipv4.prefixlen + 4)

    def block(self, slot: int) -> Block:
        """Return the block of a slot, which is below `slots`."""
        size = 1 << (32 - self._length)
        first = self.ipv4.network_address + slot * size
        first6 = self.ipv6.network_address + ((slot * _LINKS) << 64)
        length6 = 64 - (_LINKS - 1).bit_length()
        return Block(slot, IPv4((int(first), self._length)), IPv6((int(first6), length6)))

    def __str__(self) -> str:
        return f"{self.ipv4} {self.ipv6}"


_OF_6 = ("ipv6", 16, 48)
