"""Links, addresses, routes and queues of a network namespace: each operation is a value.

It can describe itself, and it is one message of rtnetlink, which pyroute2 encodes;
`rtnetlink.Netlink` sends them. `prepare` imports pyroute2, and so comes first; where test
processes are forked, before the fork.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import warnings
from typing import Any, ClassVar, Protocol

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux.netlink import (
    IFF_UP,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_SETLINK,
    RTM_SETNEIGHTBL,
)

#: The oldest that knows all that is used here, and Python 3.10 to 3.13.
OLDEST = (0, 9, 7)

# linux/if_addr.h
_NODAD = 0x2

#: For a pair that uses one queue each way. Without it the kernel makes one for each CPU, and
#: puts all but the first out of use, for which it waits for a grace period of RCU.
_ONE_QUEUE = (("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1))

#: Stands for the descriptor of namespace 0 until it is known, the next number for that of 1.
BLANK = 0x7E570000
#: Index of ``lo``.
LOOPBACK = 1


class Operation(Protocol):
    """One message.

    Attributes:
        stage: what is being done, for a `StageError`.
        forgiven: error numbers that say there was nothing to do.
    """

    @property
    def forgiven(self) -> tuple[int, ...]: ...

    @property
    def stage(self) -> str: ...

    @property
    def subject(self) -> str:
        """What it is done to."""
        ...

    def describe(self) -> str:
        """Describe the operation in half a line."""
        ...

    def message(self) -> bytes:
        """Encode the operation; the sender adds the sequence number."""
        ...


def prepare() -> None:
    """Import pyroute2, and see that it is new enough.

    Raises:
        StageError: stage "import pyroute2"; ENOENT is that it is not installed, EPROTO that
            it is another one than is needed, with its version for a path.
    """
    stage = "import pyroute2"
    with warnings.catch_warnings():
        # What it warns of is not the concern of the suite, which may turn it into errors.
        warnings.simplefilter("ignore")
        try:
            import pyroute2  # noqa: PLC0415 -- takes 0.2 s and more
            import pyroute2.netlink.rtnl.ifinfmsg  # noqa: PLC0415 -- as above
            import pyroute2.netlink.rtnl.ndtmsg  # noqa: PLC0415 -- as above
            import pyroute2.netlink.rtnl.tcmsg  # noqa: PLC0415 -- as above
        except ImportError as error:
            # Another name than its own: it is there, and something in it is not.
            number = errno.ENOENT if error.name == "pyroute2" else errno.EPROTO
            raise StageError(stage, number, str(error)) from None
    version = str(getattr(pyroute2, "__version__", "unknown"))
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers < OLDEST:
        raise StageError(stage, errno.EPROTO, version)


def encode(message: Any, kind: int, flags: int, values: dict[str, Any]) -> bytes:
    """Encode a message of pyroute2, without the sequence number."""
    message.update(values)
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message.encode()
    return bytes(message.data)


def _link(kind: int, how: int, /, **values: Any) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415 -- see `prepare`

    return encode(ifinfmsg(), kind, how, values)


class _Message:
    """What most operations have in common: whatever the kernel refuses is an error."""

    forgiven: ClassVar[tuple[int, ...]] = ()


class _OfDevice(_Message):
    """An operation on one device."""

    name: str

    @property
    def subject(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class AddBridge(_OfDevice):
    """Make a bridge that forwards at once and learns, and nothing else."""

    index: int
    name: str
    who: str

    stage: ClassVar[str] = "network: make a bridge"

    def describe(self) -> str:
        return f"make the bridge {self.name}: {self.who}"

    def message(self) -> bytes:
        data = [
            ("IFLA_BR_FORWARD_DELAY", 0),
            ("IFLA_BR_STP_STATE", 0),
            ("IFLA_BR_MCAST_SNOOPING", 0),
        ]
        info = [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": data})]
        attributes = [("IFLA_IFNAME", self.name), ("IFLA_LINKINFO", {"attrs": info})]
        return _link(
            RTM_NEWLINK,
            NLM_F_CREATE | NLM_F_EXCL,
            index=self.index,
            flags=IFF_UP,
            change=IFF_UP,
            attrs=attributes,
        )


@dataclasses.dataclass(frozen=True)
class AddPair(_Message):
    """Make a veth pair with both ends in place.

    Attributes:
        index, name: of the near end.
        far_index, far_name: of the other end.
        place: number of the namespace that it lies in (`fill`), -1 for this one.
        mac: of the far end, "" for one by chance.
        whose: for `describe`: what that namespace is called.
        near_mac: as *mac*, of the near end.
        up: whether the near end is brought up.
    """

    index: int
    name: str
    far_index: int
    far_name: str
    place: int
    mac: str
    whose: str
    near_mac: str = ""
    up: bool = True

    stage: ClassVar[str] = "network: make a veth pair"

    @property
    def subject(self) -> str:
        return f"{self.whose} {self.far_name}".strip()

    def describe(self) -> str:
        return f"make a veth pair: {self.name}, and {self.far_name} in {self.whose or 'the fabric'}"

    def message(self) -> bytes:
        far: list[tuple[str, Any]] = [("IFLA_IFNAME", self.far_name), *_ONE_QUEUE]
        if self.mac:
            far.append(("IFLA_ADDRESS", self.mac))
        if self.place >= 0:
            far.append(("IFLA_NET_NS_FD", BLANK + self.place))
        peer = {"index": self.far_index, "attrs": far}
        info = [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
        ]
        attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", self.name), *_ONE_QUEUE]
        attributes.append(("IFLA_LINKINFO", {"attrs": info}))
        if self.near_mac:
            attributes.append(("IFLA_ADDRESS", self.near_mac))
        flags = IFF_UP if self.up else 0
        return _link(
            RTM_NEWLINK,
            NLM_F_CREATE | NLM_F_EXCL,
            index=self.index,
            flags=flags,
            change=flags,
            attrs=attributes,
        )


@dataclasses.dataclass(frozen=True)
class SetLink(_OfDevice):
    """Bring a device up or down."""

    index: int
    name: str
    up: bool

    @property
    def stage(self) -> str:
        return f"network: bring a link {'up' if self.up else 'down'}"

    def describe(self) -> str:
        return f"bring {self.name} {'up' if self.up else 'down'}"

    def message(self) -> bytes:
        return _link(
            RTM_SETLINK, 0, index=self.index, flags=IFF_UP if self.up else 0, change=IFF_UP
        )


@dataclasses.dataclass(frozen=True)
class SetMaster(_OfDevice):
    """Make a device a port of another bridge."""

    index: int
    name: str
    bridge: int

    stage: ClassVar[str] = "network: move a port"

    def describe(self) -> str:
        return f"move {self.name} to bridge {self.bridge}"

    def message(self) -> bytes:
        return _link(RTM_SETLINK, 0, index=self.index, attrs=[("IFLA_MASTER", self.bridge)])


@dataclasses.dataclass(frozen=True)
class Isolate(_OfDevice):
    """Have a bridge pass nothing between this port and others like it (Linux 4.18)."""

    index: int
    name: str

    stage: ClassVar[str] = "network: isolate a port"

    def describe(self) -> str:
        return f"isolate {self.name} from ports like it"

    def message(self) -> bytes:
        info = [
            ("IFLA_INFO_SLAVE_KIND", "bridge"),
            ("IFLA_INFO_SLAVE_DATA", {"attrs": [("IFLA_BRPORT_ISOLATED", 1)]}),
        ]
        return _link(RTM_NEWLINK, 0, index=self.index, attrs=[("IFLA_LINKINFO", {"attrs": info})])


@dataclasses.dataclass(frozen=True)
class Delete(_OfDevice):
    """Delete a device; of a veth pair both ends."""

    index: int
    name: str

    stage: ClassVar[str] = "network: delete a link"

    def describe(self) -> str:
        return f"delete {self.name}"

    def message(self) -> bytes:
        return _link(RTM_DELLINK, 0, index=self.index)


@dataclasses.dataclass(frozen=True)
class AddAddress(_Message):
    """Give a device an address, usable at once."""

    index: int
    name: str
    address: str
    prefix: int

    stage: ClassVar[str] = "network: set an address"

    @property
    def subject(self) -> str:
        return f"{self.address} of {self.name}"

    def describe(self) -> str:
        return f"give {self.name} the address {self.address}/{self.prefix}"

    def message(self) -> bytes:
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: PLC0415 -- see `prepare`

        six = ":" in self.address
        attributes: list[tuple[str, Any]] = [("IFA_LOCAL", self.address)]
        attributes.append(("IFA_ADDRESS", self.address))
        if six:
            attributes.append(("IFA_FLAGS", _NODAD))
        values = {
            "family": socket.AF_INET6 if six else socket.AF_INET,
            "prefixlen": self.prefix,
            "index": self.index,
            "attrs": attributes,
        }
        return encode(ifaddrmsg(), RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, values)


@dataclasses.dataclass(frozen=True)
class AddRoute(_Message):
    """A route to *network* ("" for all) by the router *gateway*."""

    network: str
    prefix: int
    gateway: str
    index: int
    name: str

    stage: ClassVar[str] = "network: set a route"

    @property
    def subject(self) -> str:
        return f"{self.network or 'default'} by {self.gateway}"

    def describe(self) -> str:
        to = f"{self.network}/{self.prefix}" if self.network else "everything else"
        return f"route {to} by {self.gateway} ({self.name})"

    def message(self) -> bytes:
        from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: PLC0415 -- see `prepare`

        attributes: list[tuple[str, Any]] = [("RTA_GATEWAY", self.gateway)]
        attributes.append(("RTA_OIF", self.index))
        if self.network:
            attributes.append(("RTA_DST", self.network))
        values = {
            "family": socket.AF_INET6 if ":" in self.gateway else socket.AF_INET,
            "dst_len": self.prefix if self.network else 0,
            "table": 254,  # main
            "proto": 4,  # static
            "scope": 0,  # universe
            "type": 1,  # unicast
            "attrs": attributes,
        }
        return encode(rtmsg(), RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, values)


@dataclasses.dataclass(frozen=True)
class Ask(_OfDevice):
    """How often a device asks for a neighbour that does not answer.

    By default once a second, three times: what is healed is then found a second late.
    """

    index: int
    name: str
    six: bool
    every_ms: int
    times: int

    stage: ClassVar[str] = "network: set how neighbours are asked"

    def describe(self) -> str:
        what = "IPv6" if self.six else "IPv4"
        often = f"{self.times} times, every {self.every_ms} ms"
        return f"let {self.name} ask for {what} neighbours {often}"

    def message(self) -> bytes:
        from pyroute2.netlink.rtnl.ndtmsg import ndtmsg  # noqa: PLC0415 -- see `prepare`

        parameters = [
            ("NDTPA_IFINDEX", self.index),
            ("NDTPA_RETRANS_TIME", self.every_ms),
            ("NDTPA_UCAST_PROBES", self.times),
            ("NDTPA_MCAST_PROBES", self.times),
        ]
        values = {
            "family": socket.AF_INET6 if self.six else socket.AF_INET,
            "attrs": [
                ("NDTA_NAME", "ndisc_cache" if self.six else "arp_cache"),
                ("NDTA_PARMS", {"attrs": parameters}),
            ],
        }
        return encode(ndtmsg(), RTM_SETNEIGHTBL, NLM_F_REPLACE, values)
