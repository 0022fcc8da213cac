"""Plan the namespaces and links of a topology: worked out once, carried out for each test.

Each host is a network namespace, and so is the fabric, where each interface of a host has
its other end, and each switch is an `nft_switch` or a bridge. Nothing has a name outside of
these namespaces; they live as long as the descriptors of whoever made them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from typing import NamedTuple

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux.kernel_files import read_sysctl, write_sysctl
from pytest_nsisolate.core.linux.syscalls import CLONE_NEWNET, setns, unshare
from pytest_nsisolate.spec.topology import PREFIX, PREFIX6, Port, Route, Switch, Topology, routes

from . import link_messages, nft_switch, rtnetlink

#: Indexes of devices: above those that kernels give to devices of every namespace.
_BRIDGES, _ETH, _PORTS = 20, 100, 1000
#: From here up: what changes make.
EXTRA = 1 << 20

#: How neighbours are asked for: as long as by default, ten times as often.
ASK_MS, ASK_TIMES = 100, 30

#: The stage of a setting that the kernel refuses.
_SET = "network: set sysctl"
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
    """Return the index of a switch's bridge."""
    return _BRIDGES + switch


def bridge_name(switch: int) -> str:
    """Return the name of a switch's bridge."""
    return f"s{switch}"


def port_index(port: Port) -> int:
    """Return the index of a port's end in the fabric."""
    return _PORTS + (port.switch << 8) + port.host


def port_name(port: Port) -> str:
    """Return the name of a port's end in the fabric."""
    return f"p{port.switch}.{port.host}"


def eth_index(port: Port) -> int:
    """Return the index of a port's end in its host."""
    return _ETH + int(port.name[3:])


def has_ipv6() -> bool:
    """Return whether this kernel has IPv6 enabled."""
    return os.path.exists("/proc/sys/net/ipv6")


class Place(NamedTuple):
    """A namespace to make: what it is called, its settings, and what is done from inside."""

    name: str
    settings: tuple[tuple[str, str], ...]
    batch: rtnetlink.Batch


class Joint(NamedTuple):
    """What makes a switch of ports that are there.

    Attributes:
        request: for an `nft_switch`; empty if there are too many ports.
        bridge: where that is not to be had.
    """

    switch: int
    request: bytes
    bridge: rtnetlink.Batch


class Blueprint(NamedTuple):
    """All that it takes to build a topology, worked out: the fabric first, then the hosts."""

    topology: Topology
    ipv6: bool
    places: tuple[Place, ...]
    joints: tuple[Joint, ...]

    def describe(self) -> list[str]:
        """Describe the plan, one line per step, in the order in which they are done."""
        lines = []
        for place in self.places:
            lines.append(f"unshare net: {place.name}")
            lines += [f"{place.name}: set {name} = {value}" for name, value in place.settings]
        for place in self.places:
            lines += [
                f"{place.name}: {operation.describe()}" for operation in place.batch.operations
            ]
        for joint in self.joints:
            what = _who(self.topology, self.topology.switches[joint.switch - 1])
            how = "nftables, or a bridge where it is missing" if joint.request else "a bridge"
            lines.append(f"{self.places[0].name}: join the ports of {what} by {how}")
        lines.append("wait until every link passes packets")
        return lines


def _who(topology: Topology, switch: Switch) -> str:
    names = [topology.hosts[port.host - 1].name for port in switch.ports]
    what = "the cable" if switch.is_cable else f"the switch {switch.name}".rstrip()
    return f"{what} of {', '.join(names)}"


@functools.lru_cache(maxsize=64)
def blueprint(topology: Topology, *, ipv6: bool) -> Blueprint:
    """Work out *topology*. `link_messages.prepare` comes before."""
    wires = [_pair(topology, port) for switch in topology.switches for port in switch.ports]
    places = [Place("the fabric", _OF_FABRIC if ipv6 else (), rtnetlink.Batch.of(wires))]
    for node, ways in zip(topology.hosts, routes(topology), strict=True):
        settings = _OF_HOST + (_OF_ROUTER if node.forwards else ())
        if not ipv6:
            settings = tuple(one for one in settings if "ipv6" not in one[0])
        batch = rtnetlink.Batch.of(_inside(topology, node.ports, ways, ipv6=ipv6))
        places.append(Place(node.name, settings, batch))
    joints = tuple(
        Joint(switch.number, _request(switch), rtnetlink.Batch.of(bridging(topology, switch)))
        for switch in topology.switches
    )
    return Blueprint(topology, ipv6, tuple(places), joints)


def bridging(topology: Topology, switch: Switch) -> list[link_messages.Operation]:
    """Return the operations that make a bridge of a switch whose ports exist."""
    bridge, name = bridge_index(switch.number), bridge_name(switch.number)
    return [
        link_messages.AddBridge(bridge, name, _who(topology, switch)),
        *(
            link_messages.SetMaster(port_index(port), port_name(port), bridge)
            for port in switch.ports
        ),
    ]


def _request(switch: Switch) -> bytes:
    if len(switch.ports) > nft_switch.MAX_PORTS:
        return b""
    ports = [nft_switch.Socket(port_index(one), port_name(one), one.mac) for one in switch.ports]
    return nft_switch.put_up(bridge_name(switch.number), ports)


def _pair(topology: Topology, port: Port) -> link_messages.AddPair:
    return link_messages.AddPair(
        port_index(port),
        port_name(port),
        eth_index(port),
        port.name,
        port.host,
        port.mac,
        topology.hosts[port.host - 1].name,
    )


def _inside(
    topology: Topology, ports: tuple[Port, ...], ways: tuple[Route, ...], *, ipv6: bool
) -> list[link_messages.Operation]:
    steps: list[link_messages.Operation] = [
        link_messages.SetLink(link_messages.LOOPBACK, "lo", up=True)
    ]
    for port in ports:
        index = eth_index(port)
        steps.append(
            link_messages.Ask(index, port.name, six=False, every_ms=ASK_MS, times=ASK_TIMES)
        )
        steps.append(link_messages.AddAddress(index, port.name, port.address, PREFIX))
        steps.append(link_messages.SetLink(index, port.name, up=True))
        if ipv6:
            steps.append(
                link_messages.Ask(index, port.name, six=True, every_ms=ASK_MS, times=ASK_TIMES)
            )
            steps.append(link_messages.AddAddress(index, port.name, port.address6, PREFIX6))
    for way in ways:
        out = (eth_index(way.out), way.out.name)
        to = topology.switches[way.switch - 1] if way.switch else None
        steps.append(
            link_messages.AddRoute(to.network if to else "", PREFIX, way.via.address, *out)
        )
        if ipv6:
            steps.append(
                link_messages.AddRoute(to.network6 if to else "", PREFIX6, way.via.address6, *out)
            )
    return steps


class Built(NamedTuple):
    """What `build` made.

    Attributes:
        wires: a socket in the fabric.
        rules: another, if there are crossbars.
        crossbars: the numbers of these switches.
        places: descriptors of all namespaces.
    """

    wires: rtnetlink.Netlink
    rules: nft_switch.Rules | None
    crossbars: frozenset[int]
    places: tuple[int, ...]

    def close(self) -> None:
        self.wires.close()
        if self.rules is not None:
            self.rules.close()
        for fd in self.places:
            os.close(fd)


def build(plan: Blueprint) -> Built:
    """Build it; this thread is in the namespace in the end that it was in before.

    Needs CAP_SYS_ADMIN and CAP_NET_ADMIN over the user namespace of this process.

    Raises:
        StageError: what could not be done; nothing is left then.
    """
    try:
        with contextlib.ExitStack() as unless_built:
            return _build(plan, unless_built)
    except OSError as error:
        raise StageError("network: unshare", error.errno or errno.EIO) from None


def _build(plan: Blueprint, unless_built: contextlib.ExitStack) -> Built:
    with contextlib.ExitStack() as after:
        home = rtnetlink.open_namespace()
        after.callback(os.close, home)
        fds: list[int] = []
        sockets: list[rtnetlink.Netlink] = []
        inherited = [(name, value) for name in _INHERITED if (value := read_sysctl(name))]
        # Who can't come back must not leave.
        setns(home, CLONE_NEWNET, stage="network: unshare")
        try:
            for place in plan.places:
                unshare(CLONE_NEWNET, stage="network: unshare")
                fds.append(rtnetlink.open_namespace())
                unless_built.callback(os.close, fds[-1])
                sockets.append(rtnetlink.Netlink())
                (after if len(sockets) > 1 else unless_built).callback(sockets[-1].close)
                for name, value in inherited:
                    # Ids that have no number here can't be written.
                    with contextlib.suppress(StageError):
                        write_sysctl(name, value, _SET)
                for name, value in place.settings:
                    write_sysctl(name, value, _SET)
            setns(fds[0], CLONE_NEWNET, stage="network: go back")
            rules = _open_rules()
        finally:
            setns(home, CLONE_NEWNET, stage="network: go back")
        if rules is not None:
            unless_built.callback(rules.close)
        for place, netlink in zip(plan.places, sockets, strict=True):
            netlink.run(place.batch, fds)
        crossbars = _join(plan.joints, sockets[0], rules)
        # Both ends of a pair get their carrier in one go, so these stand for the hosts' ends.
        switches = plan.topology.switches
        sockets[0].wait_up({port_index(port) for switch in switches for port in switch.ports})
        unless_built.pop_all()
        return Built(sockets[0], rules, crossbars, tuple(fds))


def _open_rules() -> nft_switch.Rules | None:
    try:
        return nft_switch.Rules()
    except StageError:
        return None


def _join(
    joints: tuple[Joint, ...], wires: rtnetlink.Netlink, rules: nft_switch.Rules | None
) -> frozenset[int]:
    """Let the ports of each switch hear each other; return which are crossbars now."""
    crossbars = set()
    for joint in joints:
        if rules is not None and joint.request:
            try:
                rules.carry_out(joint.request)
            except StageError:
                rules = None  # it would refuse the others, too
            else:
                crossbars.add(joint.switch)
                continue
        wires.run(joint.bridge)
    return frozenset(crossbars)
