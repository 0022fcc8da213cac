"""Tests that export files of each kind."""

import ctypes
import os

import pytest

PLACE = os.environ.get("NS_PLACE", "/tmp")


def test_passes(sandbox, tmp_path):
    path = tmp_path / "shot.png"
    path.write_text("first")
    sandbox.export(path)
    path.write_text("second")
    sandbox.export(str(path))
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "file").write_text("x")
    (tmp_path / "folder" / "link").symlink_to("/etc/passwd")
    sandbox.export(tmp_path / "folder")
    (tmp_path / "to").symlink_to(path)
    sandbox.export(tmp_path / "to")


def test_crashes(sandbox):
    with open(f"{PLACE}/log.txt", "w") as stream:
        stream.write("before")
    sandbox.export(f"{PLACE}/log.txt")
    os.chdir(PLACE)
    os.rename("log.txt", "other.txt")
    sandbox.export("other.txt")
    ctypes.string_at(0)


def test_none(sandbox):
    pass


def test_errors(sandbox, tmp_path):
    with pytest.raises(FileNotFoundError):
        sandbox.export(tmp_path / "missing")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a file nor a directory"):
        sandbox.export(tmp_path / "fifo")
    with pytest.raises(OSError, match="holds what was exported"):
        sandbox.export("/")
    if os.fork() == 0:
        try:
            sandbox.export("/etc/passwd")
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
