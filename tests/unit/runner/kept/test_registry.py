"""The register of kept sandboxes: what it tells, and whom it does not believe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.cli import ps
from pytest_nsisolate.core import locks
from pytest_nsisolate.runner.kept import live, registry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory for entries."""
    path = tmp_path / "kept"
    monkeypatch.setattr(locks, "directories", lambda: [str(path)])
    return path


def entry(name: str = "bcdfgh", **changes: object) -> registry.Entry:
    own = registry.process(os.getpid())
    assert own is not None
    now = time.time()
    fields: dict[str, object] = {
        "id": name,
        "init": own,
        "keeper": own,
        "flags": 1 << 29,
        "tests": ("test_it.py::test_bad",),
        "why": "failed",
        "since": now,
        "until": now + 10,
        "directory": "/",
        "environment": {"NAME": "v\udcff"},
        "place": registry.here(),
        "uid": os.geteuid(),
        "gid": os.getegid(),
    }
    return registry.Entry(**{**fields, **changes})  # type: ignore[arg-type]


def found() -> list[registry.Entry]:
    """Those in the one place: root sees those of other users elsewhere as well."""
    return [one for one in registry.entries() if one.directory == "/"]


def test_what_is_put_there_is_found(place: Path) -> None:
    first, second = entry(), entry("zxwvtr", since=0.0)
    held = [registry.put(first), registry.put(second)]
    assert found() == [second, first]
    assert all(one.here for one in found())
    held[0].remove()
    assert found() == [second]
    held[1].remove()
    assert not place.exists()


def test_id_that_is_taken(place: Path) -> None:
    held = registry.put(entry())
    with pytest.raises(FileExistsError):
        registry.put(entry(why="another"))
    assert [one.why for one in found()] == ["failed"]
    held.remove()
    assert not place.exists()


def test_its_custodian_is_gone(place: Path) -> None:
    """The entry is forgotten by whoever looks."""
    held = registry.put(entry())
    path = place / "bcdfgh.kept"
    os.close(held._fd)
    assert not found()
    assert not path.exists()


def test_another_place(place: Path) -> None:
    """What another pid namespace calls by these pids is none of ours, and is left alone."""
    held = registry.put(entry(place="some other boot 4026531836"))
    (one,) = found()
    assert not one.here
    held.remove()


def test_reused_pid() -> None:
    """Another process with that pid is not taken for it."""
    with subprocess.Popen(["sleep", "100"]) as child:
        process = registry.process(child.pid)
        assert process is not None
        pidfd = process.open()
        assert pidfd is not None
        os.close(pidfd)
        assert process.is_alive()
        assert registry.Process(process.pid, process.start - 1).open() is None
        assert not registry.Process(process.pid, process.start - 1).is_alive()
        child.kill()
    assert process.open() is None
    assert registry.process(child.pid) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "bcdfgh"}', '{"id": 7}', "\udcff"])
def test_file_that_makes_no_sense(place: Path, text: str) -> None:
    held = registry.put(entry())
    (place / "bcdfgh.kept").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not found()
    held.remove()


@pytest.mark.needs("root")
def test_files_of_others(place: Path) -> None:
    """In a directory of this user's, what another has put there does not count."""
    held = registry.put(entry())
    os.chown(place / "bcdfgh.kept", 65534, -1)
    assert not found()
    os.chown(place / "bcdfgh.kept", os.geteuid(), -1)
    assert len(found()) == 1
    held.remove()


def test_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    held = registry.put(entry())
    path = place / "bcdfgh.kept"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not found()
    held.remove()


def test_ids() -> None:
    """They are neither pids nor words, and no path."""
    names = {registry.new_id() for _ in range(100)}
    assert len(names) == 100
    assert all(registry.is_id(name) for name in names)
    for word in ("", "1", "bcdfg", "bcdfghj", "bcdfga", "../abc", "BCDFGH"):
        assert not registry.is_id(word)


@pytest.mark.needs("root")
def test_nobody_else_is_killed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that names a process of another user's: root ends nothing for it."""
    with subprocess.Popen(["sleep", "100"]) as child:
        named = registry.process(child.pid)
        assert named is not None
        held = registry.put(entry(init=named))
        path = place / "bcdfgh.kept"
        os.chown(path, 65534, -1)
        os.chown(place, 65534, -1)
        monkeypatch.setattr(registry, "_directories", lambda: [str(place)])
        (one,) = live.kept()
        assert one.owner[0] == 65534
        assert not live.end(one)
        assert child.poll() is None
        child.kill()
    held.remove()


def test_names_do_not_command_the_terminal(place: Path) -> None:
    held = registry.put(entry(tests=("test_it.py::test[\x1b]0;title\x07\udcff]",)))
    try:
        lines = ps.as_text()
    finally:
        held.remove()
    assert any("test_it.py::test[?]0;title??]" in line for line in lines)
    assert all(line.isprintable() for line in lines)
