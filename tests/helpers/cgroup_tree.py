"""A cgroup v2 made of plain files, with the rules of the kernel that matter here."""

from __future__ import annotations

import errno
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_nsisolate.cgroups import layout as cgroup_layout

if TYPE_CHECKING:
    import pytest

FILES = {
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.oom.group": "0",
        "memory.current": "0",
        "memory.peak": "0",
        "memory.events": "oom 0\noom_kill 0\n",
    },
    "cpu": {"cpu.max": "max 100000", "cpu.weight": "100"},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.peak": "0", "pids.events": "max 0\n"},
    "io": {"io.max": "", "io.stat": ""},
    "cpuset": {"cpuset.cpus": "", "cpuset.cpus.effective": "0-1"},
}


def fail(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


@dataclass
class Tree:
    """The mount point at ``root``; ``base`` is where the process under test is."""

    root: Path
    controllers: str = "cpu cpuset io memory pids"
    missing: set[str] = field(default_factory=set)
    """Files that this kernel doesn't have."""
    busy: dict[str, float] = field(default_factory=dict)
    """Directories that can't be removed before that time."""

    def install(self, monkeypatch: pytest.MonkeyPatch, path: str = "") -> Path:
        self.root.mkdir()
        (self.root / "cgroup.controllers").write_text(self.controllers)
        (self.root / "cgroup.subtree_control").write_text(self.controllers)
        (self.root / "cgroup.procs").write_text("")
        monkeypatch.setattr(cgroup_layout, "make", self.make)
        monkeypatch.setattr(cgroup_layout, "unmake", self.unmake)
        monkeypatch.setattr(cgroup_layout, "write", self.write)
        base = self.root
        for name in path.split("/"):
            base /= name
            if name:
                self.make(str(base))
        (base / "cgroup.procs").write_text(f"{os.getpid()}\n")
        return base

    def layout(self, base: Path, *, writable: bool = True) -> cgroup_layout.Layout:
        one = cgroup_layout.Hierarchy(2, str(self.root), str(base), frozenset(), writable)
        return cgroup_layout.Layout((one,))

    def make(self, path: str) -> None:
        folder = Path(path)
        folder.mkdir()
        enabled = (folder.parent / "cgroup.subtree_control").read_text().split()
        files = {
            "cgroup.controllers": " ".join(enabled),
            "cgroup.subtree_control": "",
            "cgroup.procs": "",
            "cgroup.type": "domain",
            "cgroup.events": "populated 0\nfrozen 0\n",
            "cgroup.freeze": "0",
            "cgroup.kill": "",
            "cpu.stat": "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\n",
        }
        for one in enabled:
            files.update(FILES[one])
        for name, text in files.items():
            if name not in self.missing:
                (folder / name).write_text(text)

    def unmake(self, path: str) -> None:
        folder = Path(path)
        if not folder.exists():
            raise fail(errno.ENOENT, path)
        below = any(one.is_dir() for one in folder.iterdir())
        held = self.busy.get(folder.name, 0) > time.monotonic()
        if below or held or (folder / "cgroup.procs").read_text().split():
            raise fail(errno.EBUSY, path)
        shutil.rmtree(folder)

    def write(self, path: str, text: str) -> None:
        file = Path(path)
        if not file.exists():
            raise fail(errno.ENOENT, path)
        folder = file.parent
        if file.name == "cgroup.procs":
            self.move(folder, text)
        elif file.name == "cgroup.subtree_control":
            self.enable(folder, text)
        elif file.name == "cgroup.kill":
            (folder / "cgroup.procs").write_text("")
        else:
            file.write_text(text)

    def move(self, folder: Path, pid: str) -> None:
        if (folder / "cgroup.subtree_control").read_text() and folder != self.root:
            raise fail(errno.EBUSY, str(folder))
        for procs in self.root.rglob("cgroup.procs"):
            pids = [one for one in procs.read_text().split() if one != pid]
            procs.write_text("".join(f"{one}\n" for one in pids))
        with (folder / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")

    def enable(self, folder: Path, text: str) -> None:
        control = folder / "cgroup.subtree_control"
        enabled, name = set(control.read_text().split()), text[1:]
        if text[0] == "+":
            if name not in (folder / "cgroup.controllers").read_text().split():
                raise fail(errno.ENOENT, str(control))
            if (folder / "cgroup.procs").read_text().split() and folder != self.root:
                raise fail(errno.EBUSY, str(control))
            enabled.add(name)
        else:
            for one in folder.iterdir():
                if one.is_dir() and name in (one / "cgroup.subtree_control").read_text().split():
                    raise fail(errno.EBUSY, str(control))
            enabled.discard(name)
        control.write_text(" ".join(sorted(enabled)))
        for one in folder.iterdir():
            if one.is_dir():
                (one / "cgroup.controllers").write_text(" ".join(sorted(enabled)))
                if text[0] == "+":
                    for file, value in FILES[name].items():
                        if file not in self.missing and not (one / file).exists():
                            (one / file).write_text(value)
