"""Runs of the command line ``nsisolate`` in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest_nsisolate
from pytest_nsisolate.cgroups import layout as cgroup_layout

from .hosts import DEADLINE, MARKER, become, marked, proc_bytes, wait_gone

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = (sys.executable, "-m", "pytest_nsisolate")
STANDS = "print('up', flush=True); __import__('signal').pause()"
"""A program that prints a line and stays the same program: amid an exec a process has no name."""


@dataclass(kw_only=True)
class Commands:
    """Where, and as whom; every process of it carries a marker."""

    path: Path
    uid: int | None = None
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        # The package that is tested, wherever it was imported from.
        package = str(Path(pytest_nsisolate.__file__).parents[1])
        return {**os.environ, "PYTHONPATH": package, **(env or {}), MARKER: self.marker}

    def start(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        prefix: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*become(self.uid), *prefix, *PROGRAM, *words],
            cwd=self.path,
            env=self.environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )

    def __call__(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",  # noqa: A002 -- as subprocess.run has it
        prefix: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, which no process of it outlives."""
        process = self.start(*words, env=env, stdin=subprocess.PIPE, prefix=prefix)
        try:
            out, err = process.communicate(input, DEADLINE)
        finally:
            process.kill()
            process.wait()
        assert not wait_gone(self.marker), f"left running: {err.decode()}"
        return subprocess.CompletedProcess(
            list(map(str, words)), process.returncode, out.decode(), err.decode()
        )

    def shell(self, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script in a sandbox."""
        return self("run", *options, "--", "sh", "-c", source)

    def measured(self, source: str, *options: str) -> dict[str, Any]:
        """Run a shell script in a sandbox; what was said of it in JSON."""
        done = self.shell(source, "--json", *options)
        found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
        assert found["exit_code"] == done.returncode
        return found

    def python(self, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program in a sandbox."""
        return self("run", *options, "--", sys.executable, "-I", "-S", "-c", source)

    def cgroups_of(self, command: str) -> dict[Path, int]:
        """The session's cgroups in which a process of that command line is, with their inodes."""
        layout = cgroup_layout.find()
        unified = next((one for one in layout.hierarchies if one.version == 2), None)
        found = {}
        for pid in marked(self.marker):
            if command.encode() not in proc_bytes(pid, "cmdline").replace(b"\0", b" "):
                continue
            for line in proc_bytes(pid, "cgroup").decode().splitlines():
                number, names, path = line.split(":", 2)
                if "/nsisolate-" not in path or "/test-" not in path or "name=" in names:
                    continue
                name = names.split(",")[0]
                place = layout.where({"blkio": "io"}.get(name, name)) if number != "0" else unified
                assert place is not None
                folder = Path(place.mount + path).parent
                found[folder] = folder.stat().st_ino
        return found


def still_there(groups: Mapping[Path, int]) -> list[Path]:
    """Those that have not been removed, or removed and made again by another session."""
    return [path for path, inode in groups.items() if path.exists() and path.stat().st_ino == inode]
