"""The grammar of topologies, and what follows from a text: addresses, routes, parts of a switch."""

from __future__ import annotations

import itertools

import pytest

from pytest_nsisolate.spec.topology import (
    MAX_HOSTS,
    MAX_SWITCHES,
    TopologyError,
    divide,
    parse,
    routes,
)

THOUSAND = " ".join(f"h{number}" for number in range(1000))


def shape(text: str) -> list[tuple[str, list[str]]]:
    """The switches of a text: the name of each, and the hosts on it."""
    found = parse(text)
    return [
        (switch.name, [found.hosts[port.host - 1].name for port in switch.ports])
        for switch in found.switches
    ]


@pytest.mark.parametrize(
    ("text", "switches"),
    [
        ("a b c", [("", ["a", "b", "c"])]),
        ("  a\tb ", [("", ["a", "b"])]),
        ("cli -- r -- srv", [("", ["cli", "r"]), ("", ["r", "srv"])]),
        ("cli--r1--srv-2", [("", ["cli", "r1"]), ("", ["r1", "srv-2"])]),
        ("a b -- r -- c", [("", ["a", "b", "r"]), ("", ["r", "c"])]),
        ("a -- r1 r2 -- b", [("", ["a", "r1", "r2"]), ("", ["r1", "r2", "b"])]),
        ("lan: a b r; dmz: r srv", [("lan", ["a", "b", "r"]), ("dmz", ["r", "srv"])]),
        ("lan: a b r\n\n r -- srv\n", [("lan", ["a", "b", "r"]), ("", ["r", "srv"])]),
        ("up: a -- b; a -- b", [("up", ["a", "b"]), ("", ["a", "b"])]),
        ("a b; c d;", [("", ["a", "b"]), ("", ["c", "d"])]),
    ],
)
def test_grammar(text: str, switches: list[tuple[str, list[str]]]) -> None:
    """What stands on which switch."""
    assert shape(text) == switches


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("", 0, "no host"),
        (" \n ", 0, "no host"),
        ("wifi", 0, "alone"),
        ("a b; c", 5, "alone"),
        ("a -- -- b", 5, "missing"),
        ("a --", 4, "missing"),
        ("-- a", 0, "missing"),
        ("a b; -- ; c d", 5, "missing"),
        (";a b", 0, "missing"),
        ("a b a", 4, "twice"),
        ("a -- a", 5, "twice"),
        ("a A", 2, "one name"),
        ("a - b", 2, "'-'"),
        ("a --- b", 4, "'-'"),
        ("a b_c", 3, "'_'"),
        ("a b-", 3, "'-'"),
        ("a 9b", 2, "begins with a letter"),
        ("a b.c", 3, "'.'"),
        ("a é", 2, "'é'"),
        ("a " + "b" * 64, 2, "63"),
        ("a localhost", 2, "itself"),
        (": a b", 0, "missing"),
        ("lan:", 4, "missing"),
        ("lan: a b; lan: c d", 10, "already"),
        ("a b: c", 3, "first"),
        ("lan: a -- b -- c", 12, "one switch"),
        ("a: a b", 0, "a host and of a switch"),
        (THOUSAND, THOUSAND.index("h250"), "more than 250"),
    ],
)
def test_mistakes_are_pointed_at(text: str, place: int, says: str) -> None:
    """The reason, and the place in the text."""
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert says in caught.value.reason
    assert caught.value.at == place
    line, mark = caught.value.picture.splitlines()
    assert len(line) < 100
    at = caught.value.at
    if not text[at : at + 1].isspace():
        assert line[mark.index("^") :][:1] == text[at : at + 1]


def test_limits_are_reached() -> None:
    """As many as allowed are."""
    assert len(parse(" ".join(f"h{n}" for n in range(MAX_HOSTS))).hosts) == MAX_HOSTS
    chain = " -- ".join(f"h{n}" for n in range(MAX_SWITCHES + 1))
    assert len(parse(chain).switches) == MAX_SWITCHES
    with pytest.raises(TopologyError, match="more than 60 switches"):
        parse(chain + " -- one-more")


def test_addresses_go_by_position() -> None:
    """The host's number and the switch's number, whatever else is named."""
    found = parse("a -- r -- b; r c")
    ports = {node.name: node.ports for node in found.hosts}
    assert [port.address for port in ports["r"]] == ["10.0.1.2", "10.0.2.2", "10.0.3.2"]
    assert [port.name for port in ports["r"]] == ["eth0", "eth1", "eth2"]
    assert [port.address6 for port in ports["c"]] == ["fd00:0:0:3::4"]
    assert [node.name for node in found.hosts if node.forwards] == ["r"]
    assert "10.0.2.2\tr r.eth1\n" in found.names()
    assert "fd00" not in found.names(ipv6=False)


@pytest.mark.parametrize(
    "text",
    [
        "a b c",
        "a -- r -- b",
        "a -- r1 -- r2 -- b; r2 -- d",
        "a b -- r1 r2 -- c d",
        "a -- r1; r1 -- r2; r2 -- r3; r3 -- r1; r3 -- b; r2 -- c",
        "a b; c d",
        " -- ".join(f"h{n}" for n in range(MAX_SWITCHES + 1)),
    ],
)
def test_routes_lead_there(text: str) -> None:
    """Following the routes hop by hop reaches every host that is connected, and no other."""
    found = parse(text)
    tables = routes(found)
    for start, goal in itertools.permutations(found.hosts, 2):
        target = goal.ports[0].switch
        at, hops = start, 0
        while target not in {port.switch for port in at.ports} and hops <= MAX_SWITCHES:
            table = {route.switch: route for route in tables[at.number - 1]}
            route = table.get(target) or table.get(0)
            if route is None:
                break
            assert route.out in at.ports
            assert route.out.switch == route.via.switch
            at, hops = found.hosts[route.via.host - 1], hops + 1
        reached = target in {port.switch for port in at.ports}
        assert reached == connected(text, start.name, goal.name), (start.name, goal.name)


def connected(text: str, one: str, other: str) -> bool:
    """Whether there is any way: the hosts of all switches that share a host."""
    groups = [set(hosts) for _, hosts in shape(text)]
    seen = {one}
    while grown := [group for group in groups if group & seen and not group <= seen]:
        seen |= set[str]().union(*grown)
    return other in seen


def heard(
    members: tuple[int, ...], apart: set[frozenset[int]], alone: set[int]
) -> set[frozenset[int]]:
    """Which pairs hear each other over the parts and cables of a divided switch."""
    division = divide(members, apart=apart, alone=alone)
    assert sorted(itertools.chain(*division.parts)) == sorted(members)
    for one in alone:
        assert frozenset({one}) in division.parts
    pairs = {frozenset(p) for part in division.parts for p in itertools.combinations(part, 2)}
    for i, j in map(sorted, division.cables):
        pairs |= {frozenset(p) for p in itertools.product(division.parts[i], division.parts[j])}
    return pairs


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_division(size: int) -> None:
    """For each set of pairs that are to be apart, exactly these don't hear each other."""
    members = tuple(range(1, size + 1))
    pairs = [frozenset(pair) for pair in itertools.combinations(members, 2)]
    for chosen in itertools.product([False, True], repeat=len(pairs)):
        apart = {pair for pair, out in zip(pairs, chosen, strict=True) if out}
        for alone in (set[int](), {1}, {1, 2}):
            assert heard(members, apart, alone) == set(pairs) - apart


def test_a_cut_in_two_takes_no_cable() -> None:
    """What users do most is two bridges."""
    apart = {frozenset({1, 2}), frozenset({1, 3})}
    division = divide((1, 2, 3), apart=apart, alone=set())
    assert set(division.parts) == {frozenset({1}), frozenset({2, 3})}
    assert not division.cables
