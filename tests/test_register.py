"""The register of kept sandboxes: what it tells, and whom it does not believe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate import listing, living, register
from pytest_nsisolate.core import locks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory for entries."""
    path = tmp_path / "kept"
    monkeypatch.setattr(locks, "directories", lambda: [str(path)])
    return path


def entry(name: str = "bcdfgh", **changes: object) -> register.Entry:
    own = register.process(os.getpid())
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
        "place": register.here(),
        "uid": os.geteuid(),
        "gid": os.getegid(),
    }
    return register.Entry(**{**fields, **changes})  # type: ignore[arg-type]


def found() -> list[register.Entry]:
    """Those in the one place: root sees those of other users elsewhere as well."""
    return [one for one in register.entries() if one.directory == "/"]


def test_what_is_put_there_is_found(place: Path) -> None:
    first, second = entry(), entry("zxwvtr", since=0.0)
    held = [register.put(first), register.put(second)]
    assert found() == [second, first]
    assert all(one.here for one in found())
    held[0].remove()
    assert found() == [second]
    held[1].remove()
    assert not place.exists()


def test_id_that_is_taken(place: Path) -> None:
    held = register.put(entry())
    with pytest.raises(FileExistsError):
        register.put(entry(why="another"))
    assert [one.why for one in found()] == ["failed"]
    held.remove()
    assert not place.exists()


def test_its_custodian_is_gone(place: Path) -> None:
    """The entry is forgotten by whoever looks."""
    held = register.put(entry())
    path = place / "bcdfgh.kept"
    os.close(held._fd)
    assert not found()
    assert not path.exists()


def test_another_place(place: Path) -> None:
    """What another pid namespace calls by these pids is none of ours, and is left alone."""
    held = register.put(entry(place="some other boot 4026531836"))
    (one,) = found()
    assert not one.here
    held.remove()


def test_reused_pid() -> None:
    """Another process with that pid is not taken for it."""
    with subprocess.Popen(["sleep", "100"]) as child:
        process = register.process(child.pid)
        assert process is not None
        pidfd = process.open()
        assert pidfd is not None
        os.close(pidfd)
        assert process.is_alive()
        assert register.Process(process.pid, process.start - 1).open() is None
        assert not register.Process(process.pid, process.start - 1).is_alive()
        child.kill()
    assert process.open() is None
    assert register.process(child.pid) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "bcdfgh"}', '{"id": 7}', "\udcff"])
def test_file_that_makes_no_sense(place: Path, text: str) -> None:
    held = register.put(entry())
    (place / "bcdfgh.kept").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not found()
    held.remove()


@pytest.mark.needs("root")
def test_files_of_others(place: Path) -> None:
    """In a directory of this user's, what another has put there does not count."""
    held = register.put(entry())
    os.chown(place / "bcdfgh.kept", 65534, -1)
    assert not found()
    os.chown(place / "bcdfgh.kept", os.geteuid(), -1)
    assert len(found()) == 1
    held.remove()


def test_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    held = register.put(entry())
    path = place / "bcdfgh.kept"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not found()
    held.remove()


def test_ids() -> None:
    """They are neither pids nor words, and no path."""
    names = {register.new_id() for _ in range(100)}
    assert len(names) == 100
    assert all(register.is_id(name) for name in names)
    for word in ("", "1", "bcdfg", "bcdfghj", "bcdfga", "../abc", "BCDFGH"):
        assert not register.is_id(word)


@pytest.mark.needs("root")
def test_nobody_else_is_killed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that names a process of another user's: root ends nothing for it."""
    with subprocess.Popen(["sleep", "100"]) as child:
        named = register.process(child.pid)
        assert named is not None
        held = register.put(entry(init=named))
        path = place / "bcdfgh.kept"
        os.chown(path, 65534, -1)
        os.chown(place, 65534, -1)
        monkeypatch.setattr(register, "_directories", lambda: [str(place)])
        (one,) = living.kept()
        assert one.owner[0] == 65534
        assert not living.end(one)
        assert child.poll() is None
        child.kill()
    held.remove()


def test_names_do_not_command_the_terminal(place: Path) -> None:
    held = register.put(entry(tests=("test_it.py::test[\x1b]0;title\x07\udcff]",)))
    try:
        lines = listing.as_text()
    finally:
        held.remove()
    assert any("test_it.py::test[?]0;title??]" in line for line in lines)
    assert all(line.isprintable() for line in lines)
