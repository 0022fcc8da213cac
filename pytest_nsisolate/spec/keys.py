"""The keys of the marker: one table, from which all lists of keys are derived.

Light, since every session that has the plugin loads it: `parsing` has the parsers.
"""

from __future__ import annotations

import enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class SpecError(Exception):
    """A key or its value is wrong; the text is for the user."""


def not_allowed(what: str, allowed: str, why: str = "") -> str:
    """Word the error that a value is not allowed.

    Args:
        what: the name and the value, as the user wrote them.
        allowed: which values are.
        why: the reason, in half a line, if there is more to say than that.
    """
    return f"{what} is not allowed{f': {why}' if why else ''}; allowed: {allowed}"


def refusal(source: str, name: str, value: object, allowed: str, why: str = "") -> SpecError:
    """Make the error that the value of a key, an option or a setting is not allowed.

    Args:
        source: where the value stands: a test, an option, a setting.
    """
    return SpecError(f"{source}: {not_allowed(f'{name}={value!r}', allowed, why)}")


class Layer:
    """The keys that one place gives. Where layers are listed, the nearest one is first."""

    __slots__ = ("source", "values")

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = values


class Flag(enum.Flag):
    """What the program does with the value of a key. Each key has one of SAME, OWN and FIRST.

    Attributes:
        PLAN: the keeper builds sandboxes by it: another value is another plan.
        SAME: the tests of one snapshot have the same value, and the snapshot has it, too.
        OWN: each test of a snapshot has its own value, and the snapshot has the default.
        FIRST: each test of a snapshot has its own value, and the snapshot has the first test's.
        REPORTED: a report lists it among the limits of a test.
    """

    PLAN = enum.auto()
    SAME = enum.auto()
    OWN = enum.auto()
    FIRST = enum.auto()
    REPORTED = enum.auto()


class Key:
    """One key of the marker; all else that is known of it is derived or stands under its name.

    `parsing.RULES` has its parser, `holds.TABLE` what it means without a sandbox, and `Spec`
    and `Limits` have the types.

    Attributes:
        name: in the marker. An option and an ini setting are named after it.
        help: a line for ``pytest --help``.
        flags: what the program does with the value.
        default: the value of a test for which no place gives one.
        controller: which controller enforces it, in the names of cgroup v2; "" if none does.
            ``devices`` is one in v1 alone, beside the sandbox's own /dev; ``io`` is blkio in v1.
        with_snapshot: the values that go with ``snapshot`` besides the default; None for all.
        run: metavar and help of the option of ``nsisolate run``; None if it has none.
    """

    __slots__ = ("controller", "default", "flags", "help", "name", "run", "with_snapshot")

    def __init__(
        self,
        name: str,
        text: str,
        flags: Flag,
        *,
        default: Any,
        controller: str = "",
        with_snapshot: tuple[object, ...] | None = None,
        run: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.help = text
        self.flags = flags
        self.default = default
        self.controller = controller
        self.with_snapshot = with_snapshot
        self.run = run

    @property
    def dashed(self) -> str:
        """The name as options have it: cpu-weight."""
        return self.name.replace("_", "-")


_TABLE = (
    Key(
        "profile",
        'a bundle of keys: "hermetic" is fs=overlay, net=loopback, env=clean, a private HOME, the '
        "host's sockets hidden, and fixed TZ, LANG, umask and host name; given keys win over it",
        Flag.SAME,
        default=None,
        with_snapshot=(),
    ),
    Key(
        "net",
        'network: "loopback" (its own, lo up), "host", "veth" (its own, linked to the host), or a '
        'topology: "a b c", "cli -- r -- srv"',
        Flag.SAME,
        default="loopback",
        with_snapshot=("host",),
        run=("NET", "loopback: a network of its own (default); host: the host's"),
    ),
    Key(
        "pcap",
        '"failed": keep the packets of a test that fails',
        Flag.SAME,
        default=None,
        with_snapshot=(),
    ),
    Key(
        "nat",
        'with net="veth": connections to beyond the host: true or false',
        Flag.SAME,
        default=False,
        with_snapshot=(),
    ),
    Key(
        "forward",
        "ports of the host's loopback that appear on the sandbox's: 5432,8080:80",
        Flag.SAME,
        default=(),
        with_snapshot=(),
    ),
    Key(
        "fs",
        'files: the host\'s ("host"), read-only ("readonly"), or writable and every write vanishes '
        '("overlay")',
        Flag.PLAN | Flag.SAME,
        default="host",
        with_snapshot=(),
    ),
    Key(
        "rootfs",
        "a directory to become / inside, with Python and the root directory bound into it",
        Flag.PLAN | Flag.SAME,
        default=None,
        with_snapshot=(),
    ),
    Key(
        "writable",
        "paths whose files are the host's, to be written, whatever fs and rootfs say: path:path",
        Flag.PLAN | Flag.SAME,
        default=(),
        with_snapshot=(),
    ),
    Key(
        "hide",
        "paths to cover, a directory by an empty one and a file by an empty one: path:path",
        Flag.PLAN | Flag.SAME,
        default=(),
        with_snapshot=(),
    ),
    Key(
        "propagation",
        'mounts made on the host meanwhile: not seen ("private"), or seen ("slave")',
        Flag.PLAN | Flag.SAME,
        default="private",
        with_snapshot=(),
    ),
    Key(
        "tmpfs",
        "size of the private /tmp, such as 256M",
        Flag.PLAN | Flag.SAME | Flag.REPORTED,
        default=256 << 20,
        run=("SIZE", "size of the private /tmp (default 256M)"),
    ),
    Key(
        "timeout",
        "seconds for setup, call and teardown together",
        Flag.FIRST | Flag.REPORTED,
        default=None,
        run=("SECONDS", "end the command after so long: SIGTERM, and SIGKILL 2 s later"),
    ),
    Key(
        "user",
        'uid inside: "same" as outside, or "root" (0)',
        Flag.PLAN | Flag.SAME,
        default="same",
        run=("USER", "same: the uid that you have (default); root: uid 0 inside"),
    ),
    Key(
        "hostname",
        "host name inside",
        Flag.SAME,
        default="isolated",
        run=("NAME", "host name inside (default: isolated)"),
    ),
    Key(
        "share",
        "namespaces to share with the host: net, uts, ipc, cgroup",
        Flag.SAME,
        default=(),
        run=("NAMES", "namespaces to share with the host, out of net,uts,ipc,cgroup"),
    ),
    Key(
        "env",
        'environment: "inherit", "clean", or NAME=value ... added to it',
        Flag.SAME,
        default="inherit",
    ),
    Key(
        "clock",
        "seconds by which CLOCK_MONOTONIC and CLOCK_BOOTTIME are moved (not the wall clock)",
        Flag.PLAN | Flag.SAME,
        default=None,
        with_snapshot=(),
    ),
    Key(
        "memory",
        "memory limit, such as 256M; what the test adds to the session counts, /tmp included",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="memory",
        run=("SIZE", "bytes of memory, its files in /tmp included, such as 64M; no swap"),
    ),
    Key(
        "cpus",
        "CPU time limit, in CPUs: 0.5 is half of one",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="cpu",
        run=("N", "CPU time, in CPUs: 0.5 is half of one"),
    ),
    Key(
        "pids",
        "limit of processes and threads at once",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="pids",
        run=("N", "processes and threads at once"),
    ),
    Key(
        "cpuset",
        "CPUs to run on, such as 0-1,3",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="cpuset",
        run=("LIST", "the CPUs to run on, such as 0-1,3"),
    ),
    Key(
        "io",
        "I/O rates for the device of the root file system: rbps=10M,wbps=5M,riops=100,wiops=100",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="io",
        run=("RATES", "rates a second for the disk of /: rbps=10M,wbps=5M,riops=100,wiops=100"),
    ),
    Key(
        "cpu_weight",
        "CPU priority against other sandboxes: 1 to 10000, 100 is even",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="cpu",
        run=("N", "priority for CPU time, 1 to 10000; 100 is even"),
    ),
    Key(
        "io_weight",
        "I/O priority against other sandboxes: 1 to 10000, 100 is even",
        Flag.OWN | Flag.REPORTED,
        default=None,
        controller="io",
        run=("N", "priority for the disk, 1 to 10000; 100 is even"),
    ),
    Key(
        "devices",
        "device nodes that may be opened, such as /dev/null,/dev/zero; all others are gone",
        Flag.PLAN | Flag.SAME | Flag.REPORTED,
        default=None,
        controller="devices",
    ),
    Key(
        "counters",
        "count page faults, context switches, and instructions and cycles where the host "
        "allows it: true or false",
        Flag.OWN,
        default=False,
    ),
    Key(
        "scope",
        "tests that share one sandbox and test process: function (none), class or module",
        Flag.SAME,
        default="function",
    ),
    Key(
        "snapshot",
        "fixtures set up once, each test being a fork from there: of a class, module or session",
        Flag.FIRST,
        default=None,
    ),
)

#: By name, in the order of the help.
KEYS: dict[str, Key] = {key.name: key for key in _TABLE}


def having(flag: Flag) -> tuple[str, ...]:
    """Return the names of the keys that have a flag."""
    return tuple(key.name for key in _TABLE if flag in key.flags)
