"""Set up a sandbox's loopback device, and network settings that need no rights later."""

from __future__ import annotations

from typing import NamedTuple

from pytest_nsisolate.core.linux import link_setup
from pytest_nsisolate.core.linux.kernel_files import write_sysctl

from .steps import Step

_LO = 1  # its index
#: With a name, as ifconfig would give it one: there are programs that take for granted that an
#: interface has one address of IPv4.
_ADDRESSES = (("127.0.1.1", 8, "lo:1"), ("fe80::7f00:101", 128, ""))


class Loopback(NamedTuple):
    """Bring ``lo`` up, which the kernel then gives 127.0.0.1 and ::1, with what hosts have besides.

    That is an address more of each family: the C library takes a host with the first two alone
    for one without network, and does not find "localhost" for whoever asks getaddrinfo(3) for
    one family with AI_ADDRCONFIG. And, if there is to be no other way out of the sandbox, ways
    for multicast and broadcast, which on other hosts the default route is.
    """

    alone: bool = True

    def describe(self) -> str:
        text = "bring lo up, with " + " and ".join(address for address, *_ in _ADDRESSES)
        return text + (", for multicast and broadcast" if self.alone else "")

    def steps(self) -> list[Step]:
        messages = [link_setup.up(_LO, "lo", acknowledge=True)]
        messages += [link_setup.address(_LO, *one) for one in _ADDRESSES]
        if self.alone:
            messages += [link_setup.multicast_route(_LO), link_setup.broadcast_route(_LO)]
        return [Step(link_setup.configure, (b"".join(one.message() for one in messages),))]


class Sysctl(NamedTuple):
    """Write one setting below /proc/sys; one that this kernel lacks is left out."""

    name: str
    value: str

    def describe(self) -> str:
        return f"set {self.name} = {self.value}"

    def steps(self) -> list[Step]:
        return [Step(write_sysctl, (self.name, self.value))]
