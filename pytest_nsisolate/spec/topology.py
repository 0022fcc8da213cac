"""Topologies as values: the grammar of ``net="a -- r -- b"``, and what follows from its text.

    topology  = statement { ( ";" | newline ) statement }
    statement = [ switch ":" ] group { "--" group }
    group     = host { host }

A group alone is a switch with these hosts on it. ``--`` joins all hosts on its left and
all on its right by one switch of their own, for two hosts that is a cable. A host that
is named in several places stands in all of them, and forwards between them: a router.

Everything else follows from positions: the n-th host that is named, on the k-th switch,
has the addresses 10.0.k.n and fd00:0:0:k::n there. Pure: nothing here looks at the host.
"""

from __future__ import annotations

import functools
import itertools
import re
from typing import NamedTuple

#: One octet of an address, and a descriptor each in the test process.
MAX_HOSTS = 250
#: A packet lives for 64 hops, and the longest way may lead through all switches.
MAX_SWITCHES = 60
#: A label of a domain name (RFC 1035).
MAX_NAME = 63
PREFIX, PREFIX6 = 24, 64

_TOKEN = re.compile(r"[ \t]+|--|[;:\n]|[A-Za-z](?:-?[A-Za-z0-9])*")
#: Names that mean something else to resolvers.
_RESERVED = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
#: How much of a long text is shown on each side of a mistake.
_SHOWN = 30


class TopologyError(ValueError):
    """The text is no topology.

    Attributes:
        reason: what is wrong, in half a line.
        text: the whole text.
        at: index of the character that it is about.
    """

    def __init__(self, reason: str, text: str, at: int) -> None:
        super().__init__(reason, text, at)
        self.reason = reason
        self.text = text
        self.at = at

    @property
    def picture(self) -> str:
        """Two lines: the text around the place, and a mark below it."""
        begin, end = max(0, self.at - _SHOWN), self.at + _SHOWN
        before = ("... " if begin else "") + self.text[begin : self.at]
        after = self.text[self.at : end] + (" ..." if end < len(self.text) else "")
        line = (before + after).replace("\n", " ").replace("\t", " ")
        return f"    {line.rstrip()}\n    {' ' * len(before)}^"

    def __str__(self) -> str:
        return f"{self.reason} (character {self.at + 1})\n{self.picture}"


class Port(NamedTuple):
    """Where a host stands on a switch: one interface.

    Attributes:
        host, switch: their numbers, from 1 up.
        name: of the interface, inside the host.
    """

    host: int
    switch: int
    name: str

    @property
    def address(self) -> str:
        return f"10.0.{self.switch}.{self.host}"

    @property
    def address6(self) -> str:
        return f"fd00:0:0:{self.switch:x}::{self.host:x}"

    @property
    def mac(self) -> str:
        """Locally administered."""
        return f"02:00:00:00:{self.switch:02x}:{self.host:02x}"


class Node(NamedTuple):
    """A host: its number from 1 up, its name, and its ports in the order of the text."""

    number: int
    name: str
    ports: tuple[Port, ...]

    @property
    def forwards(self) -> bool:
        """Whether it is a router."""
        return len(self.ports) > 1


class Switch(NamedTuple):
    """A switch, or with two hosts and no name a cable: its number from 1 up, and its ports."""

    number: int
    name: str
    ports: tuple[Port, ...]

    @property
    def network(self) -> str:
        return f"10.0.{self.number}.0"

    @property
    def network6(self) -> str:
        return f"fd00:0:0:{self.number:x}::"

    @property
    def is_cable(self) -> bool:
        return not self.name and len(self.ports) == 2


class Route(NamedTuple):
    """How a host reaches a switch that it is not on; the way to most of them is its default.

    Attributes:
        switch: number of the switch that is reached; 0 for all not named otherwise.
        via: the router's port on the way.
        out: the host's own port.
    """

    switch: int
    via: Port
    out: Port


class Topology(NamedTuple):
    """What a text says."""

    text: str
    hosts: tuple[Node, ...]
    switches: tuple[Switch, ...]

    def host(self, name: str) -> Node:
        """Return the host with that name.

        Raises:
            KeyError: none has it; the text names those there are.
        """
        for node in self.hosts:
            if node.name == name:
                return node
        raise KeyError(unknown("host", name, [node.name for node in self.hosts]))

    def common(self, one: Node, other: Node) -> list[Switch]:
        """Return the switches that both hosts are on."""
        there = {port.switch for port in one.ports} & {port.switch for port in other.ports}
        return [switch for switch in self.switches if switch.number in there]

    def names(self, *, ipv6: bool = True) -> str:
        """Return the lines for /etc/hosts: a router has a line for each of its ports."""
        lines = []
        for node in self.hosts:
            for port in node.ports:
                names = f"{node.name} {node.name}.{port.name}" if node.forwards else node.name
                lines.append(f"{port.address}\t{names}")
                lines += [f"{port.address6}\t{names}"] if ipv6 else []
        return "\n".join(lines) + "\n"


def unknown(kind: str, name: object, known: list[str]) -> str:
    """Return the error text for a name that nothing has."""
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"no {kind} is named {name!r}; there {'is' if len(known) == 1 else 'are'} {shown}"


class _Token(NamedTuple):
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            before = re.search(r"[^\s;:]*$", text[:at])
            word = before and re.match(r"[^\s;:]+", text[before.start() :])
            what = f"{text[at]!r} can't stand " + (f"in {word[0][:40]!r}" if word else "here")
            raise TopologyError(
                f"{what}: a name begins with a letter and has letters, digits and single hyphens",
                text,
                at,
            )
        if not match[0].isspace() or match[0] == "\n":
            found.append(_Token(match[0], at))
        at = match.end()
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.hosts: dict[str, int] = {}  # name -> number
        self.first: dict[str, _Token] = {}  # lower case -> where it was first
        self.switches: list[tuple[str, list[str]]] = []
        self.switch_names: dict[str, _Token] = {}  # lower case

    def fail(self, reason: str, at: int) -> TopologyError:
        return TopologyError(reason, self.text, at)

    def statement(self, tokens: list[_Token]) -> None:
        label = None
        if len(tokens) > 1 and tokens[1].text == ":":
            label, tokens = tokens[0], tokens[2:]
        if (tokens and tokens[0].text == ":") or (label and label.text == "--"):
            raise self.fail("the name of a switch is missing here", (label or tokens[0]).at)
        end = tokens[-1].at + len(tokens[-1].text) if tokens else len(self.text)
        groups: list[list[_Token]] = [[]]
        dashes = []
        for token in tokens:
            if token.text == ":":
                raise self.fail('":" can only follow the first name, that of a switch', token.at)
            if token.text == "--":
                dashes.append(token)
                groups.append([])
            else:
                groups[-1].append(self.host(token))
        for index, group in enumerate(groups):
            if not group:
                at = dashes[index].at if index < len(dashes) else end
                raise self.fail("a host is missing here", at)
        if label is not None:
            self.label(label, dashes)
        if len(groups) == 1 and len(groups[0]) < 2:
            raise self.fail(
                f"{groups[0][0].text!r} is alone: a topology has two hosts or more, "
                'such as "a b c" (a switch) or "a -- b" (a cable)',
                groups[0][0].at,
            )
        joined = itertools.pairwise(groups) if len(groups) > 1 else [(groups[0], [])]
        for left, right in joined:
            self.join(label.text if label else "", left + right)

    def label(self, label: _Token, dashes: list[_Token]) -> None:
        if len(dashes) > 1:
            raise self.fail(
                f"{label.text!r} can name one switch, and this begins another", dashes[1].at
            )
        self.check(label)
        if label.text.lower() in self.switch_names:
            raise self.fail(f"there is a switch {label.text!r} already", label.at)
        self.switch_names[label.text.lower()] = label

    def host(self, token: _Token) -> _Token:
        self.check(token)
        known = self.first.setdefault(token.text.lower(), token)
        if known.text != token.text:
            raise self.fail(
                f"{token.text!r} and {known.text!r} are one name to a resolver", token.at
            )
        if token.text not in self.hosts:
            self.hosts[token.text] = len(self.hosts) + 1
            if len(self.hosts) > MAX_HOSTS:
                raise self.fail(f"more than {MAX_HOSTS} hosts", token.at)
        return token

    def check(self, token: _Token) -> None:
        if len(token.text) > MAX_NAME:
            raise self.fail(
                f"a name has at most {MAX_NAME} characters, not {len(token.text)}", token.at
            )
        if token.text.lower() in _RESERVED:
            raise self.fail(f"{token.text!r} is every host's name for itself", token.at)

    def join(self, name: str, tokens: list[_Token]) -> None:
        members: list[str] = []
        for token in tokens:
            if token.text in members:
                raise self.fail(f"{token.text!r} stands twice on one switch", token.at)
            members.append(token.text)
        self.switches.append((name, members))
        if len(self.switches) > MAX_SWITCHES:
            raise self.fail(f"more than {MAX_SWITCHES} switches and cables", tokens[0].at)

    def finish(self) -> Topology:
        for lower, label in self.switch_names.items():
            if lower in self.first:
                raise self.fail(f"{label.text!r} is the name of a host and of a switch", label.at)
        ports: dict[str, list[Port]] = {name: [] for name in self.hosts}
        switches = []
        for number, (name, members) in enumerate(self.switches, 1):
            here = []
            for member in members:
                port = Port(self.hosts[member], number, f"eth{len(ports[member])}")
                ports[member].append(port)
                here.append(port)
            switches.append(Switch(number, name, tuple(here)))
        nodes = tuple(Node(number, name, tuple(ports[name])) for name, number in self.hosts.items())
        return Topology(self.text, nodes, tuple(switches))


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Topology:
    """Read a topology.

    Raises:
        TopologyError: it is none; says what is wrong, and where.
    """
    parser = _Parser(text)
    statement: list[_Token] = []
    for token in [*_tokens(text), _Token("\n", len(text))]:
        if token.text not in (";", "\n"):
            statement.append(token)
            continue
        if statement:
            parser.statement(statement)
        elif token.text == ";":
            raise TopologyError("a host is missing here", text, token.at)
        statement = []
    if not parser.hosts:
        raise TopologyError("it names no host", text, 0)
    return parser.finish()


@functools.lru_cache(maxsize=64)
def routes(topology: Topology) -> tuple[tuple[Route, ...], ...]:
    """Return the routes of each host, by its number less one, each over the fewest routers."""
    return tuple(_routes_of(topology, node) for node in topology.hosts)


def _routes_of(topology: Topology, node: Node) -> tuple[Route, ...]:
    found: dict[int, Route] = {}
    seen = {port.switch for port in node.ports}
    # What is reached next: a switch, and the first step towards it (None while it is at hand).
    todo: list[tuple[int, Port | None, Port]] = [(port.switch, None, port) for port in node.ports]
    while todo:
        number, via, out = todo.pop(0)
        for port in topology.switches[number - 1].ports:
            router = topology.hosts[port.host - 1]
            if router.number == node.number or not router.forwards:
                continue
            first = via or port
            for behind in router.ports:
                if behind.switch not in seen:
                    seen.add(behind.switch)
                    found[behind.switch] = Route(behind.switch, first, out)
                    todo.append((behind.switch, first, out))
    if not found:
        return ()
    ways = [(route.via, route.out) for route in found.values()]
    via, out = max(dict.fromkeys(ways), key=ways.count)
    others = [route for route in found.values() if (route.via, route.out) != (via, out)]
    return (Route(0, via, out), *others)


class Division(NamedTuple):
    """A switch in parts: who stands in each, and which parts have a cable between them."""

    parts: tuple[frozenset[int], ...]
    cables: frozenset[frozenset[int]]  # of indexes into `parts`


def divide(members: tuple[int, ...], *, apart: set[frozenset[int]], alone: set[int]) -> Division:
    """Work out the parts of a switch so that exactly the pairs *apart* don't hear each other.

    Hosts that may hear each other and the same others share a part. Parts whose hosts may
    hear each other are cabled, and a part passes nothing on from one cable to another.

    Args:
        members: numbers of the hosts on the switch.
        apart: pairs of them.
        alone: who has to have a part to itself, for what is done to its cables.
    """
    hears = {
        one: frozenset(
            other for other in members if other == one or frozenset((one, other)) not in apart
        )
        for one in members
    }
    groups: dict[object, list[int]] = {}
    for one in members:
        groups.setdefault(("alone", one) if one in alone else hears[one], []).append(one)
    parts = tuple(frozenset(group) for group in groups.values())
    cables = {
        frozenset((i, j))
        for i, one in enumerate(parts)
        for j, other in enumerate(parts)
        if i < j and next(iter(other)) in hears[next(iter(one))]
    }
    return Division(parts, frozenset(cables))
