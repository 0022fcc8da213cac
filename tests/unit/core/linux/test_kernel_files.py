"""Small files of the kernel are read and written in one call; settings by their names."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux import kernel_files

if TYPE_CHECKING:
    from pathlib import Path

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc/sys is Linux's")


def test_text(tmp_path: Path) -> None:
    """What is no UTF-8 comes back as it was; what can't be read is None."""
    file = tmp_path / "file"
    file.write_bytes(b"a\xff\n")
    text = kernel_files.read(str(file))
    assert text == "a\udcff\n"
    assert os.fsencode(text) == b"a\xff\n"
    assert kernel_files.read(str(tmp_path)) is None
    assert kernel_files.read(f"{tmp_path}/nothing") is None


def test_long_files_only_if_asked(tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_text("x" * 100_000)
    assert len(kernel_files.read(str(file)) or "") == 65536
    assert len(kernel_files.read(str(file), whole=True) or "") == 100_000


@pytest.mark.parametrize(
    ("text", "number"), [("12\n", 12), ("max\n", None), ("", None), ("-1\n", None), ("²", None)]
)
def test_number(tmp_path: Path, text: str, number: int | None) -> None:
    (tmp_path / "file").write_text(text, "utf-8")
    assert kernel_files.read_number(f"{tmp_path}/file") == number


@LINUX
def test_settings_are_read_by_name() -> None:
    with open("/proc/sys/kernel/ostype", encoding="ascii") as stream:
        assert kernel_files.read_sysctl("kernel.ostype") == stream.read().strip() == "Linux"
    assert kernel_files.read_sysctl("kernel.no_such_setting") is None
    assert kernel_files.is_set("kernel.ostype")
    assert not kernel_files.is_set("kernel.no_such_setting")


@LINUX
def test_a_setting_that_this_kernel_lacks_is_left_out() -> None:
    kernel_files.write_sysctl("kernel.no_such_setting", "1")


@LINUX
def test_a_setting_that_the_kernel_refuses() -> None:
    """The error names the stage and the file."""
    with pytest.raises(StageError) as caught:
        kernel_files.write_sysctl("kernel.ostype", "1", "set it")
    assert caught.value.stage == "set it"
    assert caught.value.path == "/proc/sys/kernel/ostype"
    assert caught.value.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def test_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, is_set in (("0", False), ("", False), ("1", True), ("2", True)):
        monkeypatch.setattr(kernel_files, "read_sysctl", {"a.b": value}.get)
        assert kernel_files.is_set("a.b") is is_set
