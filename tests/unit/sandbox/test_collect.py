"""Files of a failed test are brought out of its sandbox, and nothing else is."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.core import copying
from pytest_nsisolate.core.artifacts import STAGING, Collected, CollectRequest
from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.files import artifact_policy
from pytest_nsisolate.runner.processes import stamp
from pytest_nsisolate.sandbox import collect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The directory that the test sees."""
    path = tmp_path / "inside"
    path.mkdir()
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The directory on the host."""
    path = tmp_path / "outside"
    path.mkdir()
    return path


def bring_out(outside: Path, **fields: Any) -> Collected:
    target = os.open(outside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return collect.bring_out(CollectRequest(**fields), [target], [])
    finally:
        os.close(target)


def copy_out(inside: Path, outside: Path) -> Collected:
    return bring_out(outside, temporary=str(inside))


def test_files_and_modes(inside: Path, outside: Path) -> None:
    deep = inside / "test_a0" / "deep"
    deep.mkdir(parents=True)
    (deep / "script").write_bytes(b"x" * 3_000_000)
    (deep / "script").chmod(0o755)
    (deep / "empty").touch()
    deep.chmod(0o500)
    copy_out(inside, outside)
    found = outside / "test_a0" / "deep"
    assert (found / "script").read_bytes() == b"x" * 3_000_000
    assert stat.S_IMODE((found / "script").stat().st_mode) == 0o755
    assert (found / "empty").stat().st_size == 0
    assert stat.S_IMODE(found.stat().st_mode) == 0o500
    for path in (deep, found):
        path.chmod(0o700)  # so that it can be cleaned up


def test_links_are_copied_as_links(tmp_path: Path, inside: Path, outside: Path) -> None:
    """Nothing is read through one: neither a file, nor a directory on the way."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (inside / "test_a0").mkdir()
    (inside / "test_a0" / "link").symlink_to(secret / "file")
    (inside / "test_a0" / "folder").symlink_to(secret)
    (inside / "test_linked").symlink_to(secret)
    copy_out(inside, outside)
    assert os.readlink(outside / "test_a0" / "link") == str(secret / "file")
    assert (outside / "test_a0" / "folder").is_symlink()
    assert sorted(os.listdir(outside)) == ["test_a0"]


def test_link_on_the_way(tmp_path: Path, inside: Path, outside: Path) -> None:
    """A test that puts a link in the place of the directory gets nothing copied."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "test_a0").mkdir(parents=True)
    inside.rmdir()
    inside.symlink_to(elsewhere)
    copy_out(inside, outside)
    assert os.listdir(outside) == []


def test_special_files_are_left_out(inside: Path, outside: Path) -> None:
    """A FIFO would hang whoever opens it."""
    (inside / "test_a0").mkdir()
    os.mkfifo(inside / "test_a0" / "fifo")
    (inside / "test_a0" / "after").touch()
    copy_out(inside, outside)
    assert os.listdir(outside / "test_a0") == ["after"]


def test_holes_stay_holes(inside: Path, outside: Path) -> None:
    (inside / "test_a0").mkdir()
    with (inside / "test_a0" / "sparse").open("wb") as stream:
        stream.write(b"head")
        stream.seek(1 << 30)
        stream.write(b"tail")
        stream.truncate(2 << 30)
    copy_out(inside, outside)
    copied = outside / "test_a0" / "sparse"
    status = copied.stat()
    assert status.st_size == 2 << 30
    assert status.st_blocks * 512 < 1 << 20
    with copied.open("rb") as stream:
        assert stream.read(4) == b"head"
        stream.seek(1 << 30)
        assert stream.read(4) == b"tail"


def test_taken_names_are_numbered(inside: Path, outside: Path) -> None:
    for name in ("test_a0", "plain"):
        (inside / name).mkdir()
        (inside / name / "new").touch()
        (outside / name).mkdir()
    (outside / "test_a1").mkdir()
    told = copy_out(inside, outside)
    assert sorted(os.listdir(outside)) == ["plain", "plain1", "test_a0", "test_a1", "test_a2"]
    assert os.listdir(outside / "test_a2") == os.listdir(outside / "plain1") == ["new"]
    assert told.renamed == (("plain", "plain1"), ("test_a0", "test_a2"))


def test_what_is_skipped(inside: Path, outside: Path) -> None:
    """Placeholders, what is exported, and what is no directory."""
    for name in ("test_a0", "test_a1", "test_a2", STAGING):
        (inside / name).mkdir()
    (inside / "test_a2" / "file").touch()
    (inside / "file").touch()
    told = bring_out(outside, temporary=str(inside), skip=("test_a0", "test_a2"))
    assert sorted(os.listdir(outside)) == ["test_a1", "test_a2"]
    assert told == Collected()


def test_too_many_bytes(inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large is left out and named, and the rest is there."""
    monkeypatch.setattr(copying, "LIMIT", 100_000)
    (inside / "test_a0").mkdir()
    (inside / "test_a0" / "large").write_bytes(b"x" * 200_000)
    (inside / "test_a0" / "small").write_bytes(b"x" * 1000)
    told = copy_out(inside, outside)
    assert os.listdir(outside / "test_a0") == ["small"]
    assert told.left_out == ("test_a0/large (too much)",)


def test_too_many_files(inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files have no size, but a million of them are too much as well."""
    monkeypatch.setattr(copying, "MAX_ENTRIES", 30)
    (inside / "test_a0").mkdir()
    for number in range(100):
        (inside / "test_a0" / f"{number:03}").touch()
    told = copy_out(inside, outside)
    assert sorted(os.listdir(outside / "test_a0")) == [f"{number:03}" for number in range(29)]
    assert len(told.left_out) == copying.MAX_TOLD
    assert told.left_out[0] == "test_a0/029 (too many files)"
    assert told.more == 71 - copying.MAX_TOLD


def test_too_deep(inside: Path, outside: Path) -> None:
    """Thousands of directories in each other take neither descriptors nor the stack."""
    here = os.open(inside, os.O_RDONLY)
    for number in range(3000):
        name = "d" if number else "test_a0"
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        told = copy_out(inside, outside)
    finally:
        # Python's own removal of trees, which pytest uses later, fails on it.
        subprocess.run(["rm", "-rf", inside, outside], check=True)
    (name,) = told.left_out
    assert name.endswith("/d (too deep)")
    assert name.count("/d") == copying.MAX_DEPTH


def test_a_file_that_grows_is_bounded(
    inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size that counts is what is read, not what was asked for before."""
    monkeypatch.setattr(copying, "LIMIT", 100_000)
    (inside / "test_a0").mkdir()
    file = inside / "test_a0" / "file"
    file.write_bytes(b"x" * 1000)
    opened = os.open

    def grow(path: Any, *args: Any, **options: Any) -> int:
        fd = opened(path, *args, **options)
        if path == "file":
            file.write_bytes(b"x" * 1_000_000)
        return fd

    monkeypatch.setattr(os, "open", grow)
    copy_out(inside, outside)
    status = (outside / "test_a0" / "file").stat()
    assert status.st_blocks * 512 <= 110_000


def test_a_file_that_becomes_a_link(
    tmp_path: Path, inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test's leftover process swaps a file for a link between the look and the copy."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "inner").write_text("secret")
    (inside / "test_a0" / "folder").mkdir(parents=True)
    (inside / "test_a0" / "file").write_text("x")
    looked = os.stat

    def swap(path: Any, **options: Any) -> os.stat_result:
        status = looked(path, **options)
        if path == "file":
            (inside / "test_a0" / "file").unlink()
            (inside / "test_a0" / "file").symlink_to(secret / "inner")
        if path == "folder":
            (inside / "test_a0" / "folder").rmdir()
            (inside / "test_a0" / "folder").symlink_to(secret)
        return status

    monkeypatch.setattr(os, "stat", swap)
    told = copy_out(inside, outside)
    monkeypatch.undo()
    assert os.listdir(outside / "test_a0") == []
    assert len(told.left_out) == 2


def test_times_and_set_user_id(inside: Path, outside: Path) -> None:
    """A file keeps its time; it has another owner now, so it does not act for the old one."""
    (inside / "test_a0").mkdir()
    file = inside / "test_a0" / "file"
    file.touch()
    file.chmod(0o6755)
    os.utime(file, ns=(10**18, 10**18))
    copy_out(inside, outside)
    status = (outside / "test_a0" / "file").stat()
    assert status.st_mtime_ns == 10**18
    assert stat.S_IMODE(status.st_mode) == 0o755


@pytest.mark.parametrize("gone", ["inside", "outside"])
def test_nothing_there(inside: Path, outside: Path, gone: str) -> None:
    target = os.open(outside, os.O_RDONLY | os.O_DIRECTORY)
    (inside / "test_a0").mkdir()
    if gone == "inside":
        (inside / "test_a0").rmdir()
        inside.rmdir()
    else:
        outside.rmdir()
    told = collect.bring_out(CollectRequest(temporary=str(inside)), [target], [])
    os.close(target)
    assert told.renamed == ()


NAMES = ["a.log", ".hidden.log", "b.txt", "one/a.log", "one/two/a.log", "one/.git/a.log", "x[1]"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.log", ["a.log"]),
        (".*.log", [".hidden.log"]),
        ("?.*", ["a.log", "b.txt"]),
        ("one/*.log", ["one/a.log"]),
        ("*/*.log", ["one/a.log"]),
        ("**/*.log", ["a.log", "one/a.log", "one/two/a.log"]),
        ("one/**", ["one/a.log", "one/two/a.log"]),
        ("one", ["one/.git/a.log", "one/a.log", "one/two/a.log"]),
        ("one/.git/*", ["one/.git/a.log"]),
        ("[ab].*", ["a.log", "b.txt"]),
        ("x[[]1]", ["x[1]"]),
        ("missing/*.log", []),
        ("link/*", []),
        ("link", []),
    ],
)
def test_patterns(inside: Path, outside: Path, pattern: str, found: list[str]) -> None:
    for name in NAMES:
        path = inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (inside / "link").symlink_to("one")
    told = bring_out(outside, name="T", patterns=(f"{inside}/{pattern}",), directory=str(inside))
    brought = outside / "T"
    names = [str(path.relative_to(brought)) for path in brought.rglob("*") if path.is_file()]
    assert sorted(names) == found
    assert all((brought / name).read_text() == name for name in names)
    assert told.artifacts == ("T" if found else "")
    assert told.left_out == ()
    assert bool(list(outside.iterdir())) == bool(found)


def test_only_what_changed(inside: Path, outside: Path) -> None:
    """Of what matches, only what the test made or changed; a directory without is left out."""
    for name in ("old/a.log", "new/a.log", "new/old.log"):
        (inside / name).parent.mkdir(exist_ok=True)
        (inside / name).write_text("x")
    while (
        not (since := (inside / "new/a.log").stat().st_ctime_ns)
        > (inside / "new/old.log").stat().st_ctime_ns
    ):
        (inside / "new/a.log").write_text("y")
    for pattern in ("*/*.log", "*", "**"):
        request = {"patterns": (f"{inside}/{pattern}",), "directory": str(inside), "since": since}
        told = bring_out(outside, name="T", **request)
        files = [str(one.relative_to(outside)) for one in outside.rglob("*") if one.is_file()]
        assert files == [f"{told.artifacts}/new/a.log"]
        assert not (outside / told.artifacts / "old").exists()
        shutil.rmtree(outside / told.artifacts)


def test_outside_the_directory_it_keeps_its_path(inside: Path, outside: Path) -> None:
    (inside / "a.log").write_text("x")
    told = bring_out(outside, name="T", patterns=(f"{inside}/*.log",), directory="/nowhere")
    assert (outside / told.artifacts / str(inside).strip("/") / "a.log").exists()


def test_a_taken_directory_for_artifacts(inside: Path, outside: Path) -> None:
    """Each gets one of its own, whoever made the others."""
    (inside / "a").write_text("x")
    (outside / "T").mkdir()
    names = [bring_out(outside, name="T", staging=str(inside)).artifacts for _ in range(3)]
    assert names == ["T-2", "T-3", "T-4"]


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("test_a.py::test_b", "test_a.py.test_b"),
        ("unit/test_a.py::TestC::test_b[x-1]", "unit-test_a.py.TestC.test_b[x-1]"),
        ("../other/test_a.py::test_b", "-other-test_a.py.test_b"),
        ("tëst.py::test_ü", "tëst.py.test_ü"),
    ],
)
def test_directory_names(nodeid: str, name: str) -> None:
    assert artifact_policy.directory_name(nodeid) == name


def test_directory_names_of_odd_tests() -> None:
    """Whatever is in an id, it is one name of a file system, and another test's is another."""
    odd = ["t.py::t[a b]", "t.py::t[a/b]", "t.py::t[a\0b]", "t.py::t[" + "ü" * 300 + "]"]
    odd += ["t.py::t[a*b]", "t.py::t[a\nb]", "..", "", "t.py::t[" + "ü" * 301 + "]", "\udcff"]
    names = [artifact_policy.directory_name(nodeid) for nodeid in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert name not in {"", ".", ".."}
        assert "/" not in name
        assert "\0" not in name
        assert len(os.fsencode(name)) < 200


def test_numbers() -> None:
    """The numbers that pytest would give in one directory; no two tests get one path."""
    names = ["test_a", "test_b", "test_a", "TEST_A", "test_a1", "test_a", "test_b[x]", "x" * 40]
    names += ["x" * 35]
    found = artifact_policy.numbers(enumerate(names))
    assert found == {2: ("test_a", 1), 3: ("TEST_A", 2), 5: ("test_a", 3), 8: ("x" * 30, 1)}


@pytest.mark.skipif(not LINUX, reason="the clock of files is Linux's")
def test_what_was_changed_before_is_older(tmp_path: Path) -> None:
    """A test is let go in a tick that no file of the test before it can have."""
    for number in range(20):
        file = tmp_path / str(number)
        file.write_text("by the test before")
        assert file.stat().st_ctime_ns < stamp(apart=True)
        file.write_text("by the next one")
        since = stamp(apart=False)
        file.write_text("and again")
        assert file.stat().st_ctime_ns >= since
