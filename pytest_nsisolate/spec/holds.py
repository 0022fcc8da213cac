"""Say which keys of the marker hold in a sandbox, and which ones hold without one: one table.

Nothing here looks at the host or at pytest. Each key has a row. For each mode, the row says what
happens to a key that is not at its default: it is held, it is refused (the test is an error that
names the key), or it means nothing. Errors, the session's header and the table in
`docs/reference.md` are derived from it. A new mode is a new column: a member of `Mode`, and a
cell in each row.

Guarantees: a key at its default value is never refused.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

from .bounds import parse_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Mode(enum.Enum):
    """The ways to run a test. The values are words of the documents."""

    FULL = "sandbox"
    FORK = "fork"
    RUN = "run"


class Verdict(enum.Enum):
    """What happens to a key that is not at its default."""

    HELD = "held"
    REFUSED = "refused"
    NOTHING = "means nothing"


class Facts(NamedTuple):
    """What verdicts depend on besides the value of the key.

    Attributes:
        linux: whether this system is Linux.
        root: whether the runner's uid is 0.
        group: whether a control group holds all limits of the test.
        counts: whether this host lets the runner count any event.
        cpus: the CPUs that the runner may use.
    """

    linux: bool = True
    root: bool = False
    group: bool = False
    counts: bool = False
    cpus: frozenset[int] = frozenset()


class But(NamedTuple):
    """The condition under which a cell has another verdict.

    Attributes:
        when: completes "held where ...", for the documents.
        fits: whether the condition is met, from the value of the key and the facts.
    """

    verdict: Verdict
    when: str
    fits: Callable[[Any, Facts], bool]


class Cell(NamedTuple):
    """The verdict of one key in one mode.

    Attributes:
        why: half a line for users: completes "held ...", or is the reason of another verdict.
    """

    verdict: Verdict
    why: str
    but: But | None = None

    def verdict_of(self, value: object, facts: Facts) -> Verdict:
        """Return the verdict for a value of the key."""
        if self.but is not None and self.but.fits(value, facts):
            return self.but.verdict
        return self.verdict


class Network(NamedTuple):
    """The network that a key needs in a sandbox: with another one it would do nothing.

    Attributes:
        needs: completes "KEY needs ...".
        allowed: completes "allowed: KEY with ...".
        fits: whether it is that, from the value of ``net``; never for the host's network.
    """

    needs: str
    allowed: str
    fits: Callable[[object], bool]


class Row(NamedTuple):
    """The cells of one key, and the network that it needs."""

    cells: Mapping[Mode, Cell]
    network: Network | None = None


class Refusal(NamedTuple):
    """A key of a test that the mode of the test can't hold."""

    key: str
    value: object
    why: str


_HELD, _REFUSED, _NOTHING = Verdict.HELD, Verdict.REFUSED, Verdict.NOTHING


def _row(full: str, fork: Cell, run: Cell, network: Network | None = None) -> Row:
    cells = {Mode.FULL: Cell(_HELD, full), Mode.FORK: fork, Mode.RUN: run}
    return Row(cells, network)


def _never(full: str, why: str, network: Network | None = None) -> Row:
    """Make the row of a key that only a sandbox can hold."""
    return _row(full, Cell(_REFUSED, why), Cell(_REFUSED, why), network)


def _limit(full: str, fork: Cell) -> Row:
    in_group = But(_HELD, "a control group can be made", lambda _, facts: facts.group)
    fork = fork if fork.but is not None else fork._replace(but=in_group)
    return _row(full, fork, Cell(_REFUSED, "nothing limits the runner"))


def _same_ports(value: Any, facts: Facts) -> bool:
    return all(inside == outside for outside, inside in value)


_GROUP = "by a control group"
_NO_GROUP = "no control group holds the test's processes"
_HOST_FILES = "the test has the host's files as they are"
_HOST_NETWORK = "the test is in the host's network"
_AS_ROOT = But(_HELD, "pytest runs as root", lambda _, facts: facts.root)
_ITS_NETWORK = But(_HELD, 'it is net="host"', lambda value, facts: value == "host")
_ITS_PORTS = But(_HELD, "each port keeps its number", _same_ports)

#: In the order of `keys.KEYS`.
TABLE: dict[str, Row] = {
    "profile": _never(
        "with all that belongs to it", "there is no private HOME, no overlay and no network"
    ),
    "net": _row(
        'by a network namespace (`"veth"` takes root, a topology two kernel modules)',
        Cell(_REFUSED, _HOST_NETWORK, _ITS_NETWORK),
        Cell(_REFUSED, _HOST_NETWORK, _ITS_NETWORK),
    ),
    "pcap": _never(
        "for the sandbox's own network",
        "there is no network of its own to record",
        Network(
            "a network of the test's own",
            'net="loopback", net="veth" or a topology',
            lambda net: True,
        ),
    ),
    "nat": _never(
        "by nftables, pasta or slirp4netns",
        "there is no link to the host",
        Network('net="veth"', 'net="veth"', lambda net: net == "veth"),
    ),
    "forward": _row(
        "by a relay",
        Cell(_REFUSED, "the host's ports keep their numbers", _ITS_PORTS),
        Cell(_REFUSED, "the host's ports keep their numbers", _ITS_PORTS),
        Network("a network of the test's own", 'net="loopback" or net="veth"', lambda net: True),
    ),
    "fs": _never("by mounts", "what the test writes stays on the host"),
    "rootfs": _never("by pivot_root", _HOST_FILES),
    "writable": _row(
        "by mounts",
        Cell(_NOTHING, "all paths are the host's"),
        Cell(_NOTHING, "all paths are the host's"),
    ),
    "hide": _never("by mounts", _HOST_FILES),
    "propagation": _row(
        "where the host shares its mounts",
        Cell(_HELD, "since the test sees the host's mounts"),
        Cell(_HELD, "since the test sees the host's mounts"),
    ),
    "tmpfs": _never("for each private directory", "the host's directories are used"),
    "timeout": _row(
        "by the runner",
        Cell(_HELD, "by the runner"),
        Cell(_REFUSED, "nothing ends a test in the runner"),
    ),
    "user": _row(
        "by a user namespace",
        Cell(_REFUSED, "the test has the uid of pytest", _AS_ROOT),
        Cell(_REFUSED, "the test has the uid of pytest", _AS_ROOT),
    ),
    "hostname": _never("by a UTS namespace", "the test has the host's name"),
    "share": _row(
        "by leaving these namespaces out",
        Cell(_NOTHING, "all namespaces are the host's"),
        Cell(_NOTHING, "all namespaces are the host's"),
    ),
    "env": _row(
        "in the test process",
        Cell(_HELD, "in the test process"),
        Cell(_REFUSED, "the test has the environment of the runner"),
    ),
    "clock": _never("by a time namespace", "the test has the host's clocks"),
    "memory": _limit(
        _GROUP,
        Cell(
            _REFUSED,
            "this system holds no process to it",
            But(
                _HELD,
                "a control group can be made, and else, on Linux, of each process by itself "
                "(`RLIMIT_DATA`; files in `/tmp` don't count)",
                lambda _, facts: facts.group or facts.linux,
            ),
        ),
    ),
    "cpus": _limit(_GROUP, Cell(_REFUSED, _NO_GROUP)),
    "pids": _limit(
        _GROUP,
        Cell(_REFUSED, f"{_NO_GROUP}, and RLIMIT_NPROC counts all of a user's"),
    ),
    "cpuset": _limit(
        _GROUP,
        Cell(
            _REFUSED,
            "pytest itself may not use all of these CPUs",
            But(
                _HELD,
                "a control group can be made, and else, on Linux, by the CPU affinity, if pytest "
                "itself may use all of these CPUs",
                lambda value, facts: facts.group or parse_cpus(value) <= facts.cpus,
            ),
        ),
    ),
    "io": _limit(_GROUP, Cell(_REFUSED, _NO_GROUP)),
    "cpu_weight": _limit(_GROUP, Cell(_REFUSED, _NO_GROUP)),
    "io_weight": _limit(_GROUP, Cell(_REFUSED, _NO_GROUP)),
    "devices": _never("by a `/dev` of its own", "/dev is the host's"),
    "counters": _row(
        "where the kernel lets this user count",
        Cell(
            _REFUSED,
            "this host lets pytest count no events",
            But(_HELD, "the kernel lets this user count", lambda _, facts: facts.counts),
        ),
        Cell(_REFUSED, "nothing tells the test's events from the runner's"),
    ),
    "scope": _row(
        "in one test process",
        Cell(_HELD, "in one test process"),
        Cell(_NOTHING, "all tests share the runner"),
    ),
    "snapshot": _row(
        "by forks of one test process",
        Cell(_NOTHING, "each test sets its fixtures up itself"),
        Cell(_REFUSED, "a test sees what others did to shared fixtures"),
    ),
}


def judge(asked: Mapping[str, object], mode: Mode, facts: Facts) -> list[Refusal]:
    """List the keys that *mode* can't hold.

    Args:
        asked: the keys that are not at their default values.
    """
    found = []
    for key, row in TABLE.items():
        if key in asked:
            cell = row.cells[mode]
            if cell.verdict_of(asked[key], facts) is Verdict.REFUSED:
                found.append(Refusal(key, asked[key], cell.why))
    return found


def markdown() -> list[str]:
    """Write the table of the documents, a line for each row."""
    heads = [f"`--ns-missing={mode.value}`" for mode in Mode if mode is not Mode.FULL]
    lines = [f"| key | in a sandbox | {' | '.join(heads)} |", "|---" * (1 + len(Mode)) + "|"]
    for key, row in TABLE.items():
        cells = " | ".join(_shown(row.cells[mode]) for mode in Mode)
        lines.append(f"| `{key}` | {cells} |")
    return lines


def _shown(cell: Cell) -> str:
    if cell.but is not None:
        other = f"{cell.but.verdict.value} where {cell.but.when}"
        return f"{other}; else {cell.verdict.value}: {cell.why}"
    joint = " " if cell.verdict is Verdict.HELD else ": "
    return f"{cell.verdict.value}{joint}{cell.why}"
