"""From a topology to namespaces: the plan as values, worked out once, carried out per test.

Each host is a network namespace, and so is the fabric, where each switch is a bridge and
each interface of a host has its other end. Nothing has a name outside of these
namespaces; they live as long as the descriptors of whoever made them.
"""

import contextlib
import errno
import functools
import os
from typing import NamedTuple

from . import linkops, rtnl
from .facts import StageError
from .syscalls import CLONE_NEWNET, setns, unshare
from .topology import PREFIX, PREFIX6, Port, Route, Switch, Topology, routes

#: Indexes of devices: above those that kernels give to devices of every namespace.
_BRIDGES, _ETH, _PORTS = 20, 100, 1000
#: From here up: what changes make.
EXTRA = 1 << 20

#: How neighbours are asked for: as long as by default, ten times as often.
ASK_MS, ASK_TIMES = 100, 30

#: What the hosts have as the namespace has that they are made from: ping and port 80
#: without rights, in a sandbox.
_INHERITED = ("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range")
_OF_FABRIC = (("net.ipv6.conf.default.disable_ipv6", "1"),)
_OF_HOST = (
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
)
_OF_ROUTER = (
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.forwarding", "1"),
)


def bridge_index(switch: int) -> int:
    """The index of a switch's bridge."""
    return _BRIDGES + switch


def bridge_name(switch: int) -> str:
    """Its name."""
    return f"s{switch}"


def port_index(port: Port) -> int:
    """The index of a port's end in the fabric."""
    return _PORTS + (port.switch << 8) + port.host


def port_name(port: Port) -> str:
    """Its name."""
    return f"p{port.switch}.{port.host}"


def eth_index(port: Port) -> int:
    """The index of a port's end in its host."""
    return _ETH + int(port.name[3:])


def has_ipv6() -> bool:
    """Whether this kernel has IPv6, and it is not switched off."""
    return os.path.exists("/proc/sys/net/ipv6")


class Place(NamedTuple):
    """A namespace to make: what it is called, its settings, and what is done from inside."""

    name: str
    settings: "tuple[tuple[str, str], ...]"
    batch: rtnl.Batch


class Blueprint(NamedTuple):
    """All that it takes to build a topology, worked out: the fabric first, then the hosts."""

    topology: Topology
    ipv6: bool
    places: "tuple[Place, ...]"

    def describe(self) -> "list[str]":
        """The plan, a line a step, in the order in which they are done."""
        lines = []
        for place in self.places:
            lines.append(f"unshare net: {place.name}")
            lines += [f"{place.name}: set {name} = {value}" for name, value in place.settings]
        for place in self.places:
            lines += [
                f"{place.name}: {operation.describe()}" for operation in place.batch.operations
            ]
        lines.append("wait until every link passes packets")
        return lines


def _who(topology: Topology, switch: Switch) -> str:
    names = [topology.hosts[port.host - 1].name for port in switch.ports]
    what = "the cable" if switch.is_cable else f"the switch {switch.name}".rstrip()
    return f"{what} of {', '.join(names)}"


@functools.lru_cache(maxsize=64)
def blueprint(topology: Topology, *, ipv6: bool) -> Blueprint:
    """Work out *topology*. `linkops.prepare` comes before."""
    wires: list[linkops.Operation] = []
    for switch in topology.switches:
        bridge = bridge_index(switch.number)
        wires.append(linkops.AddBridge(bridge, bridge_name(switch.number), _who(topology, switch)))
        wires += [_pair(topology, port, bridge) for port in switch.ports]
    places = [Place("the fabric", _OF_FABRIC if ipv6 else (), rtnl.Batch.of(wires))]
    for node, ways in zip(topology.hosts, routes(topology), strict=True):
        settings = _OF_HOST + (_OF_ROUTER if node.forwards else ())
        if not ipv6:
            settings = tuple(one for one in settings if "ipv6" not in one[0])
        batch = rtnl.Batch.of(_inside(topology, node.ports, ways, ipv6=ipv6))
        places.append(Place(node.name, settings, batch))
    return Blueprint(topology, ipv6, tuple(places))


def _pair(topology: Topology, port: Port, bridge: int) -> linkops.AddPair:
    return linkops.AddPair(
        port_index(port),
        port_name(port),
        bridge,
        eth_index(port),
        port.name,
        port.host,
        port.mac,
        topology.hosts[port.host - 1].name,
    )


def _inside(
    topology: Topology, ports: "tuple[Port, ...]", ways: "tuple[Route, ...]", *, ipv6: bool
) -> "list[linkops.Operation]":
    steps: list[linkops.Operation] = [linkops.SetLink(linkops.LOOPBACK, "lo", up=True)]
    for port in ports:
        index = eth_index(port)
        steps.append(linkops.Ask(index, port.name, six=False, every_ms=ASK_MS, times=ASK_TIMES))
        steps.append(linkops.AddAddress(index, port.name, port.address, PREFIX))
        steps.append(linkops.SetLink(index, port.name, up=True))
        if ipv6:
            steps.append(linkops.Ask(index, port.name, six=True, every_ms=ASK_MS, times=ASK_TIMES))
            steps.append(linkops.AddAddress(index, port.name, port.address6, PREFIX6))
    for way in ways:
        out = (eth_index(way.out), way.out.name)
        to = topology.switches[way.switch - 1] if way.switch else None
        steps.append(linkops.AddRoute(to.network if to else "", PREFIX, way.via.address, *out))
        if ipv6:
            steps.append(
                linkops.AddRoute(to.network6 if to else "", PREFIX6, way.via.address6, *out)
            )
    return steps


class Built(NamedTuple):
    """What `build` made: a socket in the fabric, and descriptors of all namespaces."""

    wires: rtnl.Netlink
    places: "tuple[int, ...]"

    def close(self) -> None:
        self.wires.close()
        for fd in self.places:
            os.close(fd)


def build(plan: Blueprint) -> Built:
    """Build it; this thread is in the namespace in the end that it was in before.

    Needs CAP_SYS_ADMIN and CAP_NET_ADMIN over the user namespace of this process.

    Raises:
        StageError: what could not be done; nothing is left then.
    """
    inherited = [(name, _read(name)) for name in _INHERITED]
    home = rtnl.open_namespace()
    fds: list[int] = []
    sockets: list[rtnl.Netlink] = []
    try:
        # Who can't come back must not leave.
        setns(home, CLONE_NEWNET, stage="network: unshare")
        try:
            for place in plan.places:
                unshare(CLONE_NEWNET, stage="network: unshare")
                fds.append(rtnl.open_namespace())
                sockets.append(rtnl.Netlink())
                for name, value in inherited:
                    # Ids that have no number here can't be written.
                    with contextlib.suppress(StageError):
                        _write(name, value)
                for name, value in place.settings:
                    _write(name, value)
        finally:
            setns(home, CLONE_NEWNET, stage="network: go back")
        for place, netlink in zip(plan.places, sockets, strict=True):
            netlink.run(place.batch, fds)
        # Both ends of a pair get their carrier in one go, so these stand for the hosts' ends.
        switches = plan.topology.switches
        sockets[0].wait_up({port_index(port) for switch in switches for port in switch.ports})
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        for netlink in sockets:
            netlink.close()
        if isinstance(error, OSError):
            raise StageError("network: unshare", error.errno or errno.EIO) from None
        raise
    finally:
        os.close(home)
    for netlink in sockets[1:]:
        netlink.close()
    return Built(sockets[0], tuple(fds))


def _path(name: str) -> str:
    return "/proc/sys/" + name.replace(".", "/")


def _read(name: str) -> str:
    try:
        with open(_path(name), encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _write(name: str, value: str) -> None:
    if not value:
        return
    path = _path(name)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StageError("network: set sysctl", error.errno or errno.EIO, path) from None
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise StageError("network: set sysctl", error.errno or errno.EIO, path) from None
    finally:
        os.close(fd)
