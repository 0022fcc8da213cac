"""The network that a test holds: hosts to enter, links to pull and shape, partitions, captures.

`Network` is what the ``sandbox.net`` of a test with a topology is. It needs no fixture:

    with Network("cli -- r -- srv") as net, net["srv"]:
        server = socket.create_server(("", 7000))

builds one in any process with CAP_SYS_ADMIN, CAP_NET_ADMIN and, for captures,
CAP_NET_RAW over its user namespace. Only in a sandbox do the names of hosts resolve.

A partition needs neither netem nor a packet filter: a switch that is cut is several
bridges, and ports move between them.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.spec import topology

from . import blueprint, link_messages
from .hosts import Host, NetworkError, UnknownName
from .links import Change, Cut, Link, Wiring
from .switchboard import Place, Switchboard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_nsisolate.spec.topology import Port, Switch

    from .pcap import Capture


class Network:
    """A topology, built. See the module; hosts are ``network["name"]``."""

    def __init__(self, plan: str | blueprint.Blueprint) -> None:
        """Build it.

        Args:
            plan: the topology, or what has been worked out of one.

        Raises:
            topology.TopologyError: the text is none.
            NetworkError: it can't be built here.
        """
        try:
            if isinstance(plan, str):
                text = topology.parse(plan)
                link_messages.prepare()
                plan = blueprint.blueprint(text, ipv6=blueprint.has_ipv6())
            self._built = blueprint.build(plan)
        except StageError as error:
            raise NetworkError(error) from None
        self.topology = plan.topology
        self._wiring = Wiring(Switchboard(self.topology, self._built))
        self._closed = False
        self._hosts = {
            node.name: Host(node, fd, self.topology.switches, ipv6=plan.ipv6)
            for node, fd in zip(self.topology.hosts, self._built.places[1:], strict=True)
        }

    def __enter__(self) -> Network:  # noqa: PYI034 -- typing.Self is newer than 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release all of it; it ends with the last process and socket inside."""
        if not self._closed:
            self._closed = True
            self._built.close()

    def __getitem__(self, name: str) -> Host:
        return self._host(name)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    def __contains__(self, name: object) -> bool:
        return name in self._hosts

    def __repr__(self) -> str:
        return f"<network of {', '.join(self._hosts)}>"

    def _host(self, name: str | Host) -> Host:
        if isinstance(name, Host):
            return name
        try:
            return self._hosts[name]
        except (KeyError, TypeError):
            raise UnknownName(topology.unknown("host", name, list(self._hosts))) from None

    # links

    def link(self, one: str | Host, other: str | Host | None = None, *, on: str = "") -> Link:
        """Return the link of two hosts, or of a host and its switch.

        Args:
            one: a host.
            other: another, on the same switch or cable; or the name of a switch; left out,
                the host's own cable, if it has one only.
            on: the name of the switch, where two hosts share several.

        Raises:
            UnknownName: a name stands for nothing.
            ValueError: there is no such link, or there are several.
        """
        here = self._host(one).node
        switches = self.topology.switches
        named = {switch.name: switch for switch in switches if switch.name}
        if other is None or (isinstance(other, str) and other in named):
            wanted = on or other
            found = [p for p in here.ports if wanted in (None, "", switches[p.switch - 1].name)]
            if len(found) != 1:
                what = "is not on it" if wanted else f"has {len(found)} interfaces; name a switch"
                raise ValueError(f"link({here.name!r}, {wanted!r}): {here.name} {what}")
            switch = switches[found[0].switch - 1]
            return self._link(switch, switch.ports if switch.is_cable else (found[0],))
        there = self._host(other).node
        if on and on not in named:
            raise UnknownName(topology.unknown("switch", on, list(named)))
        common = [s for s in self.topology.common(here, there) if on in ("", s.name)]
        if here == there or len(common) != 1:
            why = (
                "they share more than one switch; say which by on="
                if len(common) > 1 and here != there
                else "nothing joins them directly"
            )
            raise ValueError(f"link({here.name!r}, {there.name!r}): {why}")
        pair = {here.number, there.number}
        return self._link(common[0], tuple(p for p in common[0].ports if p.host in pair))

    def _link(self, switch: Switch, ports: tuple[Port, ...]) -> Link:
        hosts = [self._hosts[self.topology.hosts[port.host - 1].name] for port in ports]
        return Link(self._wiring, switch, ports, hosts)

    # partitions

    def cut(self, *sides: str | Host | Iterable[str | Host]) -> Cut:
        """Let no packet pass between hosts of different sides.

        Each argument is one side: names in a string, a host, or several of either. One side
        alone is cut off from all others. Hosts on no side go on talking with everybody.

        Returns:
            the cut: `Cut.heal` ends it, and so does the end of a ``with`` block.

        Raises:
            UnknownName: a name stands for no host.
            ValueError: a host on two sides; a router on none, that would pass packets on.
        """
        groups = [self._side(side) for side in sides]
        if len(groups) == 1:
            groups.append(set(range(1, len(self._hosts) + 1)) - groups[0])
        if len(groups) < 2 or not all(groups):
            raise ValueError("cut() takes two sides or more, with a host each")
        side_of: dict[int, int] = {}
        for number, group in enumerate(groups):
            for host in group:
                if side_of.setdefault(host, number) != number:
                    name = self.topology.hosts[host - 1].name
                    raise ValueError(f"cut(): {name} is on two sides")
        self._refuse_way_round(side_of)
        pairs = {
            (switch.number, frozenset((one.host, other.host)))
            for switch in self.topology.switches
            for one, other in itertools.combinations(switch.ports, 2)
            if one.host in side_of
            and other.host in side_of
            and side_of[one.host] != side_of[other.host]
        }
        with self._wiring.changing():
            self._wiring.board.cut(pairs)
        return Cut(lambda: self._heal([pairs]))

    def heal(self) -> Change:
        """End all cuts; as a context manager, for the time of the block."""
        cuts = self._wiring.board.cuts
        self._heal(cuts)
        return Change(lambda: self._cut_again(cuts))

    def _heal(self, cuts: list[set[Place]]) -> None:
        with self._wiring.changing():
            self._wiring.board.heal(cuts)

    def _cut_again(self, cuts: list[set[Place]]) -> None:
        with self._wiring.changing():
            for pairs in cuts:
                self._wiring.board.cut(pairs)

    def _side(self, side: str | Host | Iterable[str | Host]) -> set[int]:
        if isinstance(side, str):
            side = side.replace(",", " ").split()
        elif isinstance(side, Host):
            side = [side]
        return {self._host(one).node.number for one in side}

    def _refuse_way_round(self, side_of: dict[int, int]) -> None:
        """Refuse a router that is on no side and passes packets from one side to another."""
        hosts = self.topology.hosts
        for start, side in side_of.items():
            todo, seen = [start], {start}
            while todo:
                one = todo.pop()
                for port in hosts[one - 1].ports:
                    for member in self.topology.switches[port.switch - 1].ports:
                        other = member.host
                        if other in seen:
                            continue
                        if one != start and side_of.get(other, side) != side:
                            names = (hosts[number - 1].name for number in (start, other, one))
                            text = "cut(): {} and {} still reach each other over {}, which is on "
                            text += "no side; put it on one"
                            raise ValueError(text.format(*names))
                        if other not in side_of and hosts[other - 1].forwards:
                            seen.add(other)
                            todo.append(other)

    # captures

    def capture(
        self, host: str | Host, path: str | os.PathLike[str], *, interface: str = ""
    ) -> Capture:
        """Write the packets that *host* sends and receives into a file, until it is stopped.

        The file is in pcap's own format, for tshark and the like; a router's packets are in it
        once for each of its interfaces. A thread of this process writes it.

        Args:
            interface: only of this one.

        Returns:
            the capture; at the end of a ``with`` block it is stopped.

        Raises:
            UnknownName: a name stands for nothing.
            NetworkError: this process may not.
            OSError: the file can't be made.
        """
        from .pcap import Capture, Tap  # noqa: PLC0415 -- only where it is asked for

        there = self._host(host)
        index = 0
        if interface:
            ports = [port for port in there.node.ports if port.name == interface]
            if interface != "lo" and not ports:
                known = [*there.interfaces, "lo"]
                raise UnknownName(topology.unknown("interface", interface, known))
            index = blueprint.eth_index(ports[0]) if ports else link_messages.LOOPBACK
        try:
            with there:
                tap = Tap(os.fspath(path), interface=index)
        except StageError as error:
            raise NetworkError(error) from None
        return Capture([tap])
