"""The lines of /proc/PID/mountinfo, with names that the kernel escapes."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.linux import mountinfo
from pytest_nsisolate.core.linux.mountinfo import Mount

if TYPE_CHECKING:
    from pathlib import Path

LINES = r"""
1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
2 1 0:5 / /a\040b\011c\012d ro,nosuid - tmpfs no\043ne rw
3 1 0:6 /sub\134dir /x\134040y rw master:2 propagate_from:3 - fuse.sshfs host: rw
4 1 0:7 / /o rw - overlay overlay rw,upperdir=/u\040p
"""


def test_fields() -> None:
    first, second, third, last = mountinfo.parse(LINES)
    options = ("rw", "errors=remount-ro")
    assert first == Mount("/", "/", ("rw", "relatime"), "ext4", "/dev/sda1", options)
    assert (second.point, second.options) == ("/a b\tc\nd", ("ro", "nosuid"))
    assert second.source == "no#ne"
    assert (third.root, third.point, third.kind) == ("/sub\\dir", "/x\\040y", "fuse.sshfs")
    assert last.super_options == ("rw", "upperdir=/u p")


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    """A carriage return, too, may be in a name: only newlines end a line."""
    name = b"/\xff\r\xe2\x80\xa8"
    (tmp_path / "mountinfo").write_bytes(b"1 0 8:1 / " + name + b" rw - ext4 /dev/sda1 rw\n")
    (one,) = mountinfo.read(f"{tmp_path}/mountinfo")
    assert os.fsencode(one.point) == name


@pytest.mark.parametrize("text", ["", "\n", "1 0 8:1 / /\n", "1 0 8:1 / / rw - ext4\n", "odd - \n"])
def test_lines_that_are_cut_are_left_out(text: str) -> None:
    assert mountinfo.parse(text) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_this_process() -> None:
    assert "/proc" in {one.point for one in mountinfo.read() if one.kind == "proc"}
    with pytest.raises(FileNotFoundError):
        mountinfo.read("/proc/self/no_such_file")
