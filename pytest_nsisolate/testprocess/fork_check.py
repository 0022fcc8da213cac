"""Check after each fixture of a snapshot what it left that a fork has no copy of.

Threads, processes, sockets, pipes and shared mappings live in the kernel and not in memory.

Relies on the private name `FixtureDef.cached_result` of pytest.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_nsisolate.core.linux.proc import children, command_line

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from pytest_nsisolate.spec.spec import Spec


class _Held(NamedTuple):
    """What this process has in the kernel, apart from regular files."""

    threads: dict[int, str]
    descriptors: dict[int, str]
    processes: frozenset[int]
    mappings: frozenset[str]


def _held(keep: set[int]) -> _Held:
    threads = {
        one.native_id: one.name
        for one in threading.enumerate()
        if one.native_id is not None and one is not threading.main_thread()
    }
    for name in os.listdir("/proc/self/task"):
        if int(name) != os.getpid():
            threads.setdefault(int(name), "(not Python's)")
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fd = int(name)
            if fd not in keep and not stat.S_ISREG(os.fstat(fd).st_mode):
                descriptors[fd] = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        lines = [line.split(None, 5) for line in stream]
    # A shared mapping of a file may be there for reading; one that can be written is the point.
    mappings = frozenset(
        (line[5].strip() if len(line) > 5 else "memory") + " at " + line[0]
        for line in lines
        if line[1].startswith("rw") and line[1].endswith("s")
    )
    return _Held(threads, descriptors, frozenset(children(os.getpid())), mappings)


def _said_of(before: _Held, after: _Held, *, shares_net: bool) -> list[str]:
    """List what is new in *after*, a line each, with the reason why no fork can have it."""
    lines = []
    if not shares_net:
        lines += [
            f"the thread {name!r}: a fork has only the thread that forks"
            for thread, name in after.threads.items()
            if thread not in before.threads
        ]
        lines += [
            f"the process {pid} ({command_line(pid)}): it stays in the snapshot's sandbox"
            for pid in after.processes - before.processes
        ]
    for fd, link in after.descriptors.items():
        if before.descriptors.get(fd) == link:
            continue
        if link == "anon_inode:[eventpoll]":
            lines.append(
                "an event loop (epoll): all forks would wait on the same one; async fixtures "
                "need a loop of each test's own, such as loop_scope='function'"
            )
        elif link.startswith("socket:") and not shares_net:
            lines.append(f"the socket {_address(fd)}: it stays in the snapshot's network")
        elif link.startswith("pipe:") and not shares_net:
            lines.append(f"the pipe {fd}: all forks would read and write the same one")
        elif link.startswith(("anon_inode:", "/dev/pt")):
            lines.append(f"the descriptor {fd} ({link}): all forks would share it")
    return lines + [
        f"the shared mapping of {mapping}: all forks would write to the same memory"
        for mapping in sorted(after.mappings - before.mappings)
    ]


def _address(fd: int) -> str:
    try:
        with socket.socket(fileno=os.dup(fd)) as one:
            name = f"{fd}" if one.family == socket.AF_UNIX and not one.getsockname() else ""
            return name or f"{one.getsockname()!r}"
    except OSError:
        return f"{fd}"


class FixtureCheck:
    """A plugin that checks after each fixture, and fails a fixture that no fork can copy.

    Args:
        spec: what the snapshot's tests ask for.
        keep: descriptors of this plugin.
    """

    def __init__(self, spec: Spec, keep: set[int]) -> None:
        self._keep = keep
        self._shares_net = "net" in spec.share
        self._scope = spec.snapshot

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: Any
    ) -> Generator[None, object, object]:
        try:
            before = _held(self._keep)
            result = yield
        except BaseException as failure:
            if fixturedef.cached_result is None:
                # A hook of another plugin, or `_held`, failed. Without a cached result pytest
                # would set the fixture up again.
                key = fixturedef.cache_key(request)
                fixturedef.cached_result = _failed(key, failure, failure.__traceback__)
            raise
        try:
            lines = _said_of(before, _held(self._keep), shares_net=self._shares_net)
        except OSError as trouble:
            lines = [f"what nobody could look for: {trouble}"]
        if not lines:
            return result
        error = pytest.fail.Exception(self._text(fixturedef, lines), pytrace=False)
        key = fixturedef.cache_key(request)
        # Tests without the fixture must not find in their forks what it set up.
        with contextlib.suppress(BaseException):
            fixturedef.finish(request)
        fixturedef.cached_result = _failed(key, error, None)
        raise error

    def _text(self, fixturedef: pytest.FixtureDef[Any], lines: list[str]) -> str:
        code: Any = getattr(fixturedef.func, "__code__", None)
        where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
        what = "\n".join(f"  {line}" for line in lines)
        return (
            f"NO SNAPSHOT of the fixture {fixturedef.argname!r}{where}: it left what a fork has no "
            f"copy of:\n{what}\n"
            f"With snapshot={self._scope!r} each test is a fork of the process that set this "
            "fixture up. Give the fixture a narrower scope, so that each test sets it up; or "
            "leave the tests that use it without a snapshot; or, for a server, add "
            "share=('net',): it then stays with the snapshot, whose network its tests share."
        )


def _failed(key: object, error: BaseException, trace: TracebackType | None) -> Any:
    """Make the result of a fixture that failed, in pytest's own form."""
    return (None, key, (error, trace) if pytest.version_tuple >= (8, 2) else error)
