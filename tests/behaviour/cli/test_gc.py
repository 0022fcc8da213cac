"""``nsisolate gc``: what a killed session left is removed, and what lives is left alone."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.cgroup_tree import Tree, fail
from helpers.commands import STANDS, Commands, still_there
from helpers.hosts import DEADLINE, wait_gone
from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.cgroups import session as cgroup_session
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.cli.main import main

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path


def limited(commands: Commands) -> subprocess.Popen[bytes]:
    """A command under limits that has started."""
    script = (sys.executable, "-I", "-S", "-c", STANDS)
    process = commands.start("run", "--memory", "64M", "--pids", "9", "--", *script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.mark.needs("sandbox", "cgroup1")
def test_what_a_killed_run_left(commands: Commands) -> None:
    process = limited(commands)
    groups = commands.cgroups_of(STANDS)
    try:
        assert len(groups) >= 2
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE)
        assert not wait_gone(commands.marker)
        before = still_there(groups)
        done = commands("gc")
    finally:
        process.kill()
        process.communicate()
    assert done.returncode == 0, done.stdout
    assert not still_there(groups)
    # All of them, if no other session of this user came first and took the slot.
    for group in before:
        assert f"removed {group}\n" in done.stdout


@pytest.mark.needs("sandbox", "cgroup1")
def test_what_still_runs_is_left_alone(commands: Commands) -> None:
    process = limited(commands)
    try:
        groups = commands.cgroups_of(STANDS)
        done = Commands(path=commands.path)("gc")
        assert done.returncode == 0
        assert still_there(groups) == list(groups)
        assert not any(str(group) in done.stdout for group in groups)
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM
    assert not still_there(groups)


def test_nothing_to_sweep(
    commands: Commands, require_capability: Callable[[str], None], tmp_path: Path
) -> None:
    """As a user who has no cgroups."""
    require_capability("unprivileged")
    if os.geteuid() == 0:
        commands = Commands(path=type(tmp_path)("/"), uid=65534)
    done = commands("gc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to sweep\n", "")


def test_what_can_not_be_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, the exit code is 1, and the next sweep tries again."""
    tree = Tree(tmp_path / "cgroup")
    layout = tree.layout(tree.install(monkeypatch))
    runtime = str(tmp_path / "runtime")
    session = Session(frozenset({"memory"}), layout=layout, runtime=runtime)
    directory = session.parts[0].directory
    assert session.slot is not None
    session.slot.release(clean=False)
    session._unlock()

    def refuse(path: str) -> None:
        raise fail(errno.EPERM, path)

    with monkeypatch.context() as patch:
        patch.setattr(cgroup_layout, "unmake", refuse)
        swept = cgroup_session.sweep_all(layout=layout, runtime=runtime)
    assert swept == ([], [directory])
    with monkeypatch.context() as patch:
        patch.setattr(cgroup_session, "sweep_all", lambda: swept)
        assert main(["gc"]) == 1
    assert capsys.readouterr().out == f"could not be removed: {directory}\n"
    assert cgroup_session.sweep_all(layout=layout, runtime=runtime) == ([directory], [])
    assert cgroup_session.sweep_all(layout=layout, runtime=runtime) == ([], [])
