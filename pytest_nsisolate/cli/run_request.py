"""The request and the result of ``nsisolate run`` as values, and their text and JSON."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.proc import line_of
from pytest_nsisolate.core.text import size
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.spec.keys import KEYS, Layer, SpecError, refusal
from pytest_nsisolate.spec.limits import Limits
from pytest_nsisolate.spec.merging import merge
from pytest_nsisolate.spec.parsing import parse_value
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The options that are keys: those of the sandbox, and the limits.
_SANDBOX = tuple(key for key in KEYS.values() if key.run and not key.controller)
_LIMITS = tuple(key for key in KEYS.values() if key.run and key.controller)
#: The exit code of a failure of our own, as env(1) and timeout(1) have it.
FAILED = 125
#: Fields of `Usage` that the output calls by another name.
_NAMES = {"peak_memory": "memory_peak"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        command: its words.
        spec: of the sandbox; its timeout is the command's.
        limits: that the command is held to.
        environment: all of the command's.
        usage: how to say what it used: "text", "json" or "none".
    """

    command: tuple[str, ...]
    spec: Spec
    limits: Limits
    environment: Mapping[str, str]
    usage: str = "text"


@dataclasses.dataclass
class Ending:
    """How it went.

    Attributes:
        code: the exit code to be given.
        outcome: "completed", "signal", "timed out", "out of memory", "not found",
            "not executable" or "failed".
        messages: what a person has to be told in any case.
        wall: seconds from the start of the command to its end.
        usage: what it used; None where nothing measured it.
        by_wait4: the fields of usage that are of wait4(2): of the command and those of
            its children it waited for; the memory is that of the largest process.
        backend: of the cgroup that measured the others, "" if there was none.
        left: what it left running, which was ended: pid inside and command line.
        denied: how many forks the limit of processes refused.
    """

    code: int = FAILED
    outcome: str = "failed"
    messages: list[str] = dataclasses.field(default_factory=list)
    wall: float | None = None
    usage: Usage = dataclasses.field(default_factory=Usage)
    by_wait4: frozenset[str] = frozenset()
    backend: str = ""
    left: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    denied: int = 0


def request_of(arguments: Mapping[str, Any], command: list[str]) -> Request:
    """Make a request from the command line: its values by option name, None where not given.

    Raises:
        SpecError: what is wrong with it; names the option, the value and what is allowed.
    """
    if not command:
        raise SpecError("no command; give it after --, as in `nsisolate run -- make test`")
    values = {
        key.name: parse_value(key.name, arguments[key.name], f"option --{key.dashed}")
        for key in _SANDBOX
        if arguments[key.name] is not None
    }
    spec = merge([Layer("nsisolate run", values)])
    if spec.net not in ("loopback", "host"):
        allowed = "loopback, host (veth and topologies are for tests)"
        raise refusal("option --net", "net", spec.net, allowed)
    return Request(
        command=tuple(command),
        spec=spec,
        limits=limits_of(arguments),
        environment=_environment(arguments["env"]),
        usage="json" if arguments["json"] else "none" if arguments["quiet"] else "text",
    )


def limits_of(arguments: Mapping[str, Any]) -> Limits:
    """Parse the limits of a command line; raise `SpecError` for a wrong one."""
    return Limits(
        **{
            key.name: parse_value(key.name, arguments[key.name], f"option --{key.dashed}")
            for key in _LIMITS
            if arguments[key.name] is not None
        }
    )


def _environment(words: list[str]) -> dict[str, str]:
    base, added = "inherit", {}
    for word in words:
        name, equals, value = word.partition("=")
        if name and equals:
            added[name] = value
        else:
            base = word
    if base not in ("inherit", "clean"):
        raise refusal("option --env", "env", base, "inherit, clean, or NAME=VALUE")
    return {**Spec(env=base).environment(os.environ), **added}


def times(number: int, one: str, many: str) -> str:
    """Format a count: 1 fork, 2 forks."""
    return f"{number} {one if number == 1 else many}"


def source(ending: Ending) -> str:
    """Describe where the measures are from."""
    names = {"cpu_user": "CPU", "cpu_system": "CPU", "peak_memory": "memory of the largest process"}
    rest = ", ".join(sorted({names[key] for key in ending.by_wait4}))
    if not ending.backend:
        return f"wait4 ({rest})"
    text = f"cgroup {ending.backend}"
    if rest:
        text += f"; wait4 ({rest})"
    if ending.usage.sampled:
        text += f"; sampled: {', '.join(_named(ending.usage.sampled)).replace('_', ' ')}"
    return text


def _named(fields: frozenset[str]) -> list[str]:
    """Return the names that *fields* have in the output."""
    return sorted(_NAMES.get(name, name) for name in fields)


def as_text(request: Request, ending: Ending) -> list[str]:
    """Format the usage as lines of text."""
    usage, limits = ending.usage, request.limits
    lines = [f"exit code  {ending.code} ({ending.outcome})", f"wall       {ending.wall or 0:.3f} s"]

    def limited(text: str, limit: str | None) -> str:
        return f"{text} of at most {limit}" if limit else text

    if usage.cpu_user is not None and usage.cpu_system is not None:
        text = f"{usage.cpu_user:.3f} s user, {usage.cpu_system:.3f} s system"
        if limits.cpus is not None:
            text += f" (limit {limits.cpus:g} CPUs)"
        lines.append(f"CPU        {text}")
    if usage.peak_memory is not None:
        limit = size(limits.memory) if limits.memory is not None else None
        lines.append(f"memory     {limited(f'{size(usage.peak_memory)} at the peak', limit)}")
    if usage.pids_peak is not None:
        limit = str(limits.pids) if limits.pids is not None else None
        lines.append(f"processes  {limited(f'{usage.pids_peak} at once', limit)}, threads count")
    if usage.io_read is not None and usage.io_written is not None:
        lines.append(f"I/O        {size(usage.io_read)} read, {size(usage.io_written)} written")
    lines += [f"ended      {line_of(*one)}, left running" for one in ending.left]
    lines.append(f"source     {source(ending)}")
    return ["nsisolate: usage", *(f"  {line}" for line in lines)]


def as_json(request: Request, ending: Ending) -> dict[str, Any]:
    """Return the usage as one JSON object; a figure that was not measured is null."""
    usage = {_NAMES.get(name, name): value for name, value in ending.usage.figures().items()}
    limits = {key: value for key, value in vars(request.limits).items() if value is not None}
    if request.limits.io is not None:
        limits["io"] = dict(request.limits.io)
    if ending.wall is None:
        usage = dict.fromkeys(usage)
    return {
        "version": 1,
        "command": list(request.command),
        "exit_code": ending.code,
        "outcome": ending.outcome,
        "messages": ending.messages,
        "wall": ending.wall,
        **usage,
        "cgroup": ending.backend or None,
        "wait4": _named(ending.by_wait4),
        "sampled": _named(ending.usage.sampled),
        "limits": limits,
        "forks_refused": ending.denied,
        "left_running": [{"pid": pid, "command": command} for pid, command in ending.left if pid],
    }
