"""Read the values of the marker's keys, and refuse those that are not allowed.

Nothing here looks at the host or at pytest. A bad value raises `SpecError`, whose text names the
source, the key, the value and what is allowed.
"""

from __future__ import annotations

import math
import os
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import units
from .bounds import (
    IO_KEYS,
    MAX_CPUS,
    MAX_WEIGHT,
    MIN_CPUS,
    MIN_IO,
    MIN_MEMORY,
    MIN_WEIGHT,
    parse_cpus,
)
from .keys import KEYS, SpecError, not_allowed, refusal
from .profiles import BUNDLES

_HOSTNAME = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9-]{1,63})*"
#: Namespaces that a test may share with the host. The others carry the sandbox
#: itself: without a user namespace there are no rights to build it, without a
#: pid namespace nothing ends its processes, without a mnt namespace its mounts
#: would be the host's.
SHAREABLE = ("net", "uts", "ipc", "cgroup")
#: How many ports one test may forward.
MAX_FORWARDS = 100
#: The smallest size of a private /tmp, in bytes.
MIN_TMPFS = 1 << 20

#: How far a clock may be moved, in seconds: some 126 years; the kernel takes a little more.
MAX_CLOCK = 4e9

#: Values of ``net`` that are words; every other one is a topology.
NETS = ("loopback", "host", "veth")
#: How much of a wrong value an error text repeats.
_SHOWN = 100


class _Refused(ValueError):
    """A value is wrong, and the parser knows why: a reason of half a line, and lines below it."""


def _size(smallest: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = units.size(value)
        if not smallest <= number < 1 << 63:
            raise ValueError
        return number

    return parse


def _none_or(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    def parse_or_none(value: object) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        return parse(value)

    return parse_or_none


def _number(smallest: float, largest: float = math.inf) -> Callable[[object], float]:
    def parse(value: object) -> float:
        number = units.quantity(value)
        if not (number > 0 and smallest <= number <= largest and math.isfinite(number)):
            raise ValueError
        return number

    return parse


def _clock(value: object) -> float:
    number = units.quantity(value)
    if not abs(number) <= MAX_CLOCK:
        raise ValueError
    return number


def _whole(smallest: int, largest: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str):
            value = units.whole(value.strip())
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        if not smallest <= value <= largest:
            raise ValueError
        return value

    return parse


def _cpuset(value: object) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError
    parse_cpus(text)
    return "".join(text.split())


def _io(value: object) -> Mapping[str, int]:
    if isinstance(value, str):
        # The form for ini files and the command line: rbps=10M,wbps=5M
        pairs = [word.partition("=")[::2] for word in re.split(r"[,\s]+", value.strip())]
        value = dict(pairs) if len(dict(pairs)) == len(pairs) else None
    if not isinstance(value, Mapping) or not value or not value.keys() <= set(IO_KEYS):
        raise ValueError
    smallest = {"rbps": MIN_IO, "wbps": MIN_IO}
    return types.MappingProxyType(
        {key: _size(smallest.get(key, 1))(rate) for key, rate in value.items()}
    )


def _devices(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [word for word in re.split(r"[,\s]+", value) if word]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError
    for path in value:
        if not (isinstance(path, str) and path.startswith("/dev/") and ".." not in path):
            raise ValueError
    return tuple(sorted(set(value)))


def _path(value: object) -> str:
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError
    return text


def _paths(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        # The form for ini files and the command line, as in PATH.
        value = [word for word in re.split(r"[:\n]", value) if word]
    elif isinstance(value, os.PathLike):
        value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError
    return tuple(sorted({_path(one) for one in value}))


def _flag(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "yes": True, "on": True}.get(
            value.strip().lower(),
            {"false": False, "0": False, "no": False, "off": False}.get(value.strip().lower()),
        )
    if not isinstance(value, bool):
        raise ValueError
    return value


def _one_of(*allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not (isinstance(value, str) and value in allowed):
            raise ValueError
        return value

    return parse


def _net(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    if value in NETS:
        return value
    from .topology import TopologyError, parse  # noqa: PLC0415 -- only where a test has one

    try:
        parse(value)
    except TopologyError as error:
        raise _Refused(f"{error.reason} (character {error.at + 1})", error.picture) from None
    return value


def _hostname(value: object) -> str:
    if not (isinstance(value, str) and len(value) <= 64 and re.fullmatch(_HOSTNAME, value)):
        raise ValueError
    return value


def _share(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [word for word in re.split(r"[,\s]+", value) if word]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError
    if not all(isinstance(name, str) and name in SHAREABLE for name in value):
        raise ValueError
    return tuple(sorted(set(value)))


def _port(text: object) -> int:
    if isinstance(text, str):
        text = units.whole(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 0 < text < 1 << 16:
        raise ValueError
    return text


class Forward(NamedTuple):
    """A port of the host's loopback, and the port of the sandbox's loopback that leads there."""

    outside: int
    inside: int


def _forward(value: object) -> tuple[Forward, ...]:
    if isinstance(value, str):
        value = [word for word in re.split(r"[,\s]+", value) if word]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError
    found = []
    for one in value:
        if isinstance(one, Forward):
            found.append(one)
            continue
        outside, colon, inside = one.partition(":") if isinstance(one, str) else (one, "", "")
        found.append(Forward(_port(outside), _port(inside if colon else outside)))
    # Two of the host's ports can't be one of the sandbox's.
    if len({one.inside for one in found}) != len(set(found)) or len(found) > MAX_FORWARDS:
        raise ValueError
    return tuple(sorted(set(found)))


def _env(value: object) -> str | Mapping[str, str]:
    if isinstance(value, str):
        if value in ("inherit", "clean"):
            return value
        # The form for ini files and the command line: NAME=value NAME=value
        pairs = [word.partition("=") for word in value.split()]
        if not pairs or not all(name and equals for name, equals, _ in pairs):
            raise ValueError
        return types.MappingProxyType({name: text for name, _, text in pairs})
    if not isinstance(value, Mapping):
        raise ValueError
    for name, text in value.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError
        if not name or "=" in name or "\0" in name + text:
            raise ValueError
    return types.MappingProxyType(dict(value))


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        return repr(dict(value))
    return repr(list(value) if isinstance(value, tuple) else value)


def _write_size(value: Any) -> str:
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value and value % size == 0:
            return f"'{value // size}{unit}'"
    return repr(value)


def _write_forward(value: Any) -> str:
    return repr([a if a == b else f"{a}:{b}" for a, b in value])


def _write_env(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    return f"{{{', '.join(f'{name!r}: ...' for name in value)}}}"  # values may be secret


class Rule(NamedTuple):
    """How the value of a key is read and written, and what is allowed.

    Attributes:
        parse: checks and converts a value; raises ValueError or TypeError for a bad one.
        allowed: completes "KEY=VALUE is not allowed; allowed: ...".
        write: writes a value as it would stand in a marker.
    """

    parse: Callable[[object], Any]
    allowed: str
    write: Callable[[Any], str] = _write


RULES: dict[str, Rule] = {
    "profile": Rule(_none_or(_one_of(*BUNDLES)), '"hermetic", or None'),
    "net": Rule(
        _net,
        '"loopback", "host", "veth", or a topology such as "a b c" (three hosts on a switch) or '
        '"cli -- r -- srv" (a router between)',
    ),
    "pcap": Rule(_none_or(_one_of("failed")), '"failed" or None'),
    "nat": Rule(_flag, "True or False"),
    "forward": Rule(
        _forward,
        "ports from 1 to 65535, such as [5432, \"8080:80\"] (the host's 8080 at the sandbox's 80), "
        f"each of the sandbox's once, {MAX_FORWARDS} at most",
        _write_forward,
    ),
    "fs": Rule(_one_of("host", "readonly", "overlay"), '"host", "readonly" or "overlay"'),
    "rootfs": Rule(
        _none_or(_path),
        "the path of a directory that has a system in it, such as one made by debootstrap",
    ),
    "writable": Rule(_paths, "a list of paths (on the command line and in ini files: path:path)"),
    "hide": Rule(_paths, "a list of paths (on the command line and in ini files: path:path)"),
    "propagation": Rule(_one_of("private", "slave"), '"private" or "slave"'),
    "tmpfs": Rule(
        _size(MIN_TMPFS),
        'a size of at least 1M: an int of bytes, or a string with K, M or G such as "256M"',
        _write_size,
    ),
    "timeout": Rule(_none_or(_number(0)), "a number of seconds above 0, or None"),
    "user": Rule(_one_of("same", "root"), '"same" or "root"'),
    "hostname": Rule(
        _hostname, "a host name: letters, digits, hyphens and dots, at most 64 characters"
    ),
    "share": Rule(
        _share,
        "names out of " + ", ".join(SHAREABLE) + " (user, pid and mnt carry the sandbox itself)",
        repr,
    ),
    "env": Rule(
        _env,
        '"inherit", "clean", or a dict of strings (on the command line and in ini files: '
        "NAME=value ...)",
        _write_env,
    ),
    "clock": Rule(
        _none_or(_clock), f"a number of seconds from -{MAX_CLOCK:.0f} to {MAX_CLOCK:.0f}, or None"
    ),
    "memory": Rule(
        _none_or(_size(MIN_MEMORY)),
        f"a size of at least {MIN_MEMORY >> 20}M (below, no test gets started): an int of bytes, "
        'or a string with K, M or G such as "256M"',
        _write_size,
    ),
    "cpus": Rule(
        _none_or(_number(MIN_CPUS, MAX_CPUS)),
        f"a number of CPUs from {MIN_CPUS} to {MAX_CPUS}, such as 0.5",
    ),
    "pids": Rule(
        _none_or(_whole(1, 1 << 22)),
        "a number of processes and threads from 1 up (the test process is one)",
    ),
    "cpuset": Rule(_none_or(_cpuset), 'CPUs that this machine has, such as "0" or "0-1,3"'),
    "io": Rule(
        _none_or(_io),
        f"a dict with any of {', '.join(IO_KEYS)} and rates a second: a number, or a string with "
        f'K, M or G such as "10M", bytes from {MIN_IO >> 10}K up (on the command line and in ini '
        "files: rbps=10M,wbps=5M)",
    ),
    "cpu_weight": Rule(
        _none_or(_whole(MIN_WEIGHT, MAX_WEIGHT)),
        f"a whole number from {MIN_WEIGHT} to {MAX_WEIGHT} (100 is even)",
    ),
    "io_weight": Rule(
        _none_or(_whole(MIN_WEIGHT, MAX_WEIGHT)),
        f"a whole number from {MIN_WEIGHT} to {MAX_WEIGHT} (100 is even)",
    ),
    "devices": Rule(
        _none_or(_devices), 'paths of device nodes below /dev, such as ["/dev/null", "/dev/fuse"]'
    ),
    "counters": Rule(_flag, "True or False"),
    "scope": Rule(_one_of("function", "class", "module"), '"function", "class" or "module"'),
    "snapshot": Rule(
        _none_or(_one_of("class", "module", "session")), '"class", "module" or "session", or None'
    ),
}


def parse_value(key: str, value: object, source: str) -> Any:
    """Check and convert the value of one key.

    Args:
        source: where it stands, for the error text: a node id, an option, an ini line.

    Raises:
        SpecError: the key is unknown, or the value is not allowed.
    """
    rule = RULES.get(key)
    if rule is None:
        raise SpecError(f"{source}: unknown key {key!r}; known are {', '.join(KEYS)}")
    try:
        return rule.parse(value)
    except _Refused as error:
        reason, picture = error.args
        text = not_allowed(f"{key}={_shorten(value)}", rule.allowed, reason)
        raise SpecError(f"{source}: {text}\n{picture}") from None
    except (ValueError, TypeError, KeyError, OverflowError):
        raise refusal(source, key, value, rule.allowed) from None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def written(key: str, value: object) -> str:
    """Write a key and its value as they would stand in a marker."""
    return f"{key}={RULES[key].write(value)}"
