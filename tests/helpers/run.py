"""Run a real pytest in a process of its own, and judge what it reported and what it left behind.

Guarantees: a run has a deadline; all its processes carry a marker in their environment, so that
those which outlive it are found wherever they were reparented to; every report that reached the
runner's plugins is recorded.

Assumes: Linux with /proc mounted, and that nobody else changes mounts or links meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from .hosts import (
    DEADLINE,
    MARKER,
    become,
    inherited,
    marked,
    namespaces,
    parent,
    proc_bytes,
    wait_gone,
)
from .samples import RECORDER, SAFE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from _pytest.mark import ParameterSet

HIDING = pytest.mark.parametrize(
    "fs",
    ["host", "readonly", pytest.param("overlay", marks=pytest.mark.needs("tmpfs_attributes"))],
)
"""Each view of the host's files in which directories can be hidden here."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One report as the runner's plugins saw it."""

    nodeid: str
    when: str
    outcome: str
    xfail: str | None
    text: str
    sections: list[list[str]]
    properties: list[list[Any]]
    subtest: bool

    @property
    def category(self) -> str:
        """What the terminal would count it as, or the empty string."""
        if self.xfail is not None:
            return {"skipped": "xfailed", "passed": "xpassed"}.get(self.outcome, self.outcome)
        if self.outcome == "failed" and self.when != "call":
            return "error"
        if self.outcome == "passed" and self.when != "call":
            return ""
        return self.outcome

    def section(self, title: str) -> str:
        """The text of all sections whose title contains ``title``."""
        return "".join(text for name, text in self.sections if title in name)

    @property
    def everything(self) -> str:
        """The failure text and all sections, titles included."""
        return "\n".join([self.text, *(f"{name}\n{text}" for name, text in self.sections)])


@dataclass(frozen=True, kw_only=True)
class Warned:
    """One warning as the runner's plugins saw it."""

    nodeid: str
    when: str
    category: str
    text: str
    filename: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    ret: int
    out: str
    err: str
    phases: tuple[Phase, ...]
    warnings: tuple[Warned, ...]

    @functools.cached_property
    def verdicts(self) -> dict[str, str]:
        """What became of each test: ``passed``, ``failed``, ``passed+error``...

        The key is the node id without the leading ``test_it.py::``. A test with two reports for
        one phase shows up as for example ``passed+passed``. Subtests are not counted.
        """
        found: dict[str, list[str]] = {}
        for phase in self.phases:
            if not phase.subtest:
                categories = found.setdefault(phase.nodeid.removeprefix("test_it.py::"), [])
                categories += [phase.category] if phase.category else []
        return {nodeid: "+".join(categories) for nodeid, categories in found.items()}

    def of(self, name: str, when: str = "call") -> Phase:
        """The one report of a test's phase."""
        ends = ("::" + name, "/" + name)
        found = [
            phase
            for phase in self.phases
            if phase.nodeid.endswith(ends) and phase.when == when and not phase.subtest
        ]
        assert len(found) == 1, f"{len(found)} reports for {name} ({when})\n{self}"
        return found[0]

    def value(self, name: str, key: str) -> Any:
        """What a test gave to ``record_property(key, ...)``."""
        values = [value for found, value in self.of(name, "teardown").properties if found == key]
        assert len(values) == 1, f"{values} for property {key} of {name}\n{self}"
        return values[0]

    def expect(self, **counts: int) -> Result:
        """Assert that exactly these categories were reported, this often, one per test; itself."""
        assert dict(Counter(self.verdicts.values())) == counts, str(self)
        bad = any(word in key for key in counts for word in ("failed", "error") if key != "xfailed")
        assert self.ret == (1 if bad else 0), str(self)
        return self

    def __str__(self) -> str:
        """Everything a person needs to see why an assertion failed."""
        verdicts = "\n".join(f"  {name}: {verdict}" for name, verdict in self.verdicts.items())
        return f"exit code {self.ret}\n{verdicts}\n--- out\n{self.out}\n--- err\n{self.err}"


@dataclass(kw_only=True)
class Running:
    """A pytest that has been started; its output goes to files, so nothing can block on it."""

    process: subprocess.Popen[bytes]
    marker: str
    out: Path
    err: Path
    records: Path

    def wait(self, timeout: float = DEADLINE) -> Result:
        """Wait for the end. Past the deadline, kill all there is and fail."""
        try:
            ret = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"still running after {timeout:g} s\n{self.result(ret=-1)}")
        return self.result(ret=ret)

    def kill(self) -> None:
        """Kill the runner and whatever carries the marker of this run."""
        self.process.kill()
        self.process.wait()
        for pid in marked(self.marker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def result(self, *, ret: int) -> Result:
        """What is known by now."""
        records = []
        if self.records.exists():
            lines = self.records.read_text("utf-8").splitlines()
            records = [json.loads(line) for line in lines if line.endswith("}")]
        kinds: dict[str, list[Any]] = {"phase": [], "warning": []}
        for record in records:
            if record["kind"] == "warning":
                record["text"] = re.sub(r"0x[0-9a-f]+", "0xADDRESS", record["text"])
            kinds[record.pop("kind")].append(record)
        return Result(
            ret=ret,
            out=self.out.read_text("utf-8", "replace"),
            err=self.err.read_text("utf-8", "replace"),
            phases=tuple(Phase(**record) for record in kinds["phase"]),
            warnings=tuple(Warned(**record) for record in kinds["warning"]),
        )

    def reached(self, fifo: Path) -> None:
        """Wait until a test has opened the FIFO for writing; fail when the runner ends first."""
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        runner = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            poll.register(runner, select.POLLIN)
            ready = dict(poll.poll(DEADLINE * 1000))
        finally:
            os.close(reader)
            os.close(runner)
        assert reader in ready, f"{fifo.name} was not reached\n{self.result(ret=-1)}"

    def descendants(self, role: str) -> list[int]:
        """Processes of this run whose command line or parent shows them in a role.

        ``keeper`` is the child of the runner with that word in its command line; ``template`` is
        any other child, which has the command line of the runner.
        """
        children = [pid for pid in marked(self.marker) if parent(pid) == self.process.pid]
        is_keeper = {pid: b"keeper" in proc_bytes(pid, "cmdline") for pid in children}
        return [pid for pid in children if is_keeper[pid] == (role == "keeper")]

    def init_of_sleeper(self, command: str) -> list[int]:
        """The processes that are PID 1 of the sandbox in which ``command`` runs.

        Waited for: in the midst of its exec, whoever has been started has no command line yet.
        """
        end = time.monotonic() + DEADLINE
        while not (found := self._inits_of(command)) and time.monotonic() < end:
            time.sleep(0.01)
        return found

    def _inits_of(self, command: str) -> list[int]:
        pids = marked(self.marker)
        sleepers = [pid for pid in pids if command.encode() in proc_bytes(pid, "cmdline")]
        inside = {namespaces(pid)["pid"] for pid in sleepers}
        return [
            pid
            for pid in pids
            if namespaces(pid)["pid"] in inside
            and re.search(rb"^NSpid:.*\t1$", proc_bytes(pid, "status"), re.MULTILINE)
        ]


@dataclass(kw_only=True)
class Run:
    """Runs of pytest in one directory: write files, then call it.

    Of what is installed in the environment only ``plugins`` are loaded, by the names of their
    entry points, so that runs are the same wherever the tests run.
    """

    path: Path
    uid: int | None = None
    plugins: tuple[str, ...] = ("nsisolate",)
    count: int = field(default=0, init=False)

    def write(self, name: str, source: str) -> Path:
        """Write a file into the directory."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), "utf-8")
        return path

    def tests(self, *sources: str) -> Path:
        """Write the module ``test_it.py`` out of these parts, with the usual imports above."""
        usual = "import ctypes, errno, os, signal, socket, subprocess, sys, time, warnings"
        parts = (usual, "import pytest", *map(textwrap.dedent, sources))
        return self.write("test_it.py", "\n".join(parts))

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        prefix: Iterable[str | Path] = (),
        pass_fds: tuple[int, ...] = (),
        terminal: int | None = None,
    ) -> Running:
        """Start pytest with these arguments, behind the commands of ``prefix``.

        With ``terminal``, a descriptor, that is its input and all its output.
        """
        self.count += 1
        self.write("ns_recorder.py", RECORDER)
        self.write("ns_safe.py", SAFE)
        marker = uuid.uuid4().hex
        records = self.path / f"records-{self.count}.jsonl"
        out, err = (self.path / f"{name}-{self.count}.txt" for name in ("out", "err"))
        environment = {
            **inherited(),
            "COLUMNS": "100",
            "HOME": str(self.path),
            "NS_HOST_PIDNS": str(namespaces()["pid"]),
            "NS_RECORDER": str(records),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(self.path),
            "PY_COLORS": "0",
            **(env or {}),
            MARKER: marker,
        }
        command = [sys.executable, "-m", "pytest"]
        for name in (*self.plugins, "ns_recorder"):
            # Loaded and then blocked, a plugin would leave its options behind.
            if f"no:{name}" not in args:
                command += ["-p", name]
        command.append(f"--basetemp={self.path / f'basetemp-{self.count}'}")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            streams = subprocess.DEVNULL, stdout, stderr
            process = subprocess.Popen(
                [*become(self.uid), *prefix, *command, *args],
                cwd=self.path,
                env=environment,
                stdin=streams[0] if terminal is None else terminal,
                stdout=streams[1] if terminal is None else terminal,
                stderr=streams[2] if terminal is None else terminal,
                pass_fds=pass_fds,
            )
        return Running(process=process, marker=marker, out=out, err=err, records=records)

    def __call__(
        self,
        *args: str | Path,
        timeout: float = DEADLINE,
        env: Mapping[str, str] | None = None,
        prefix: Iterable[str | Path] = (),
        pass_fds: tuple[int, ...] = (),
    ) -> Result:
        """Run pytest with these arguments to its end, which no process of it outlives."""
        running = self.start(*args, env=env, prefix=prefix, pass_fds=pass_fds)
        try:
            result = running.wait(timeout)
            left = wait_gone(running.marker)
            assert not left, f"left running: {left}\n{result}"
        finally:
            running.kill()
        return result

    def isolated(self, *args: str | Path, **options: Any) -> Result:
        """Run pytest with every test isolated."""
        return self("--ns-isolate", *args, **options)


def lacking(name: str, reason: str) -> NoReturn:
    """Skip the running test, for a capability that isn't there; fail where it must be."""
    if name in os.environ.get("NSISOLATE_MUST_WORK", "").split(","):
        pytest.fail(f"{name} must work here (NSISOLATE_MUST_WORK): {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")


def some(values: Iterable[str], *usual: str) -> list[ParameterSet]:
    """Parameters of which those that are not `usual` are run by ``tox -e exhaustive`` alone."""
    values = list(values)
    assert not set(usual).difference(values), usual
    marks = pytest.mark.exhaustive
    return [pytest.param(one, marks=() if one in usual else marks) for one in values]


def normalised(out: str) -> list[str]:
    """What a run printed after its header, without what differs from run to run."""
    body = re.split(r"^collect(?:ed|ing) .*$", out, maxsplit=1, flags=re.MULTILINE)[-1]
    for pattern, instead in (
        (r"\bin \d+\.\d+s(?: \(\d+:\d\d:\d\d\))?", "in TIME"),
        (r"^\d+\.\d+s (call|setup|teardown)", r"TIME \1"),
        (r"\b\d+:\d\d:\d\d ago", "TIME ago"),
        (r"0x[0-9a-f]+", "0xADDRESS"),
        (r"basetemp-\d+", "basetemp-N"),
        (r"(?:report|records)-\d+", "report-N"),
        (r"=+", "="),
        (r"[ \t]+$", ""),
    ):
        body = re.sub(pattern, instead, body, flags=re.MULTILINE)
    return body.strip().splitlines()


def same(run: Run, *args: str, jobs: Iterable[int] = (1,)) -> Result:
    """Run plainly and isolated, compare outcomes, warnings and output; the isolated result."""
    isolated = plain = run(*args)
    assert plain.phases, f"nothing ran\n{plain}"
    for number in jobs:
        isolated = run.isolated(f"--ns-jobs={number}", *args)
        assert isolated.verdicts == plain.verdicts, str(isolated)
        assert outline(isolated) == outline(plain), str(isolated)
        assert isolated.warnings == plain.warnings, str(isolated)
        assert isolated.ret == plain.ret, str(isolated)
        assert normalised(isolated.out) == normalised(plain.out)
    return isolated


def outline(result: Result) -> list[tuple[object, ...]]:
    """What is comparable of the reports, in their order."""
    return [
        (phase.nodeid, phase.when, phase.outcome, phase.xfail, phase.subtest, phase.sections)
        for phase in result.phases
    ]
