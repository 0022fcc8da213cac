"""The doctor says which limits can be held, by holding them, and leaves nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.cgroup_tree import Tree
from helpers.commands import Commands
from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.cgroups import perf_counters
from pytest_nsisolate.cli import doctor

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("memory", "cpu", "pids", "cpuset", "io", "io weight", "freezer", "cpuacct")


def rows(text: str) -> dict[str, str]:
    """What is said of each controller."""
    found = {}
    for name in NAMES:
        match = re.search(rf"^    {name} +(.+)$", text, re.MULTILINE)
        assert match is not None, f"{name} is not in\n{text}"
        found[name] = match[1]
    return found


@pytest.mark.needs("sandbox", "cgroup1", "root")
def test_as_root(commands: Commands) -> None:
    before = Path("/proc/self/cgroup").read_text("ascii")
    done = commands("doctor")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^  cgroups      (v1|hybrid) ", done.stdout, re.MULTILINE)
    found = rows(done.stdout)
    for name in ("memory", "cpu", "pids", "cpuset"):
        assert found[name].startswith("works: "), done.stdout
    assert found["cpu"] == "works: cpus, cpu_weight"
    assert "  counters     " in done.stdout
    assert Path("/proc/self/cgroup").read_text("ascii") == before


@pytest.mark.needs("sandbox", "cgroup1", "root")
def test_as_nobody(commands: Commands, require_capability: Callable[[str], None]) -> None:
    """No limit can be held, why and the mend are said once, and a sandbox still works."""
    require_capability("unprivileged")
    done = Commands(path=Path("/"), uid=65534)("doctor")
    assert done.returncode == 0, done.stdout
    found = rows(done.stdout)
    for name in ("memory", "cpu", "pids", "cpuset"):
        assert re.match(r"FAILS at limit \w+ by cgroup v1 /.*: EACCES .*: no ", found[name])
    assert done.stdout.count("only root may make cgroups") == 1
    assert "mend       sudo cgcreate -a $USER" in done.stdout


def test_cgroup_v2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is handed on works, the rest has its mend; nothing is left, not even a leaf."""
    tree = Tree(tmp_path / "cgroup", controllers="memory pids")
    base = tree.install(monkeypatch, "user")
    layout = tree.layout(base)
    monkeypatch.setattr(cgroup_layout, "find", lambda: layout)
    monkeypatch.setattr(doctor, "_join", lambda group: None)
    monkeypatch.setattr(
        "pytest_nsisolate.core.locks.directories", lambda: [str(tmp_path / "slots")]
    )
    monkeypatch.setattr("pytest_nsisolate.cgroups.delegation.systemd_runs", lambda: False)
    text = "\n".join("  " + line for line in doctor.limits())
    found = rows(text)
    assert "cgroups      v2 " in text
    assert found["memory"].startswith("works")
    assert found["pids"].startswith("works")
    assert found["cpu"].startswith("FAILS at limit cpu by cgroup v2")
    assert "The controller cpu is not handed on to" in text
    assert not [path for path in base.iterdir() if path.is_dir()]
    assert (base / "cgroup.procs").read_text() == f"{os.getpid()}\n"
    assert (base / "cgroup.subtree_control").read_text() == ""


def test_no_cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroup_layout, "find", lambda: cgroup_layout.Layout(()))
    monkeypatch.setattr(
        "pytest_nsisolate.core.locks.directories", lambda: [str(tmp_path / "slots")]
    )
    monkeypatch.setattr(perf_counters, "EVENTS", {})
    text = "\n".join("  " + line for line in doctor.limits())
    assert "cgroups      none " in text
    assert rows(text)["memory"].startswith("FAILS at limit memory by cgroup none")
    assert text.count("No cgroup file system is mounted here") == 1
