"""Processes are named by what their command lines say, in characters that no terminal obeys."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_nsisolate.core import proc
from pytest_nsisolate.sandbox.init import command_line, readable

COMMANDS = [
    (b"sleep\x001000\0", "sleep 1000"),
    (b"sh\0-c\0echo 1\necho \x1b[2J\0", "sh -c echo 1\\necho \\x1b[2J"),
    ("grüße\0".encode(), "grüße"),
    (b"\xff\xfe\0", "\\xff\\xfe"),
    ("a\u202eb\0".encode(), "a\\u202eb"),
    (b"\0\0", ""),
]


@pytest.mark.parametrize(("raw", "shown"), COMMANDS, ids=[case[1] for case in COMMANDS])
def test_readable(raw: bytes, shown: str) -> None:
    assert readable(raw) == shown


def test_long_ones_are_cut() -> None:
    assert readable(b"x" * 5000) == "x" * 200


def test_real_process() -> None:
    """Both ways of looking at a process say the same."""
    code = "import sys\nsys.stdin.read()  # \x1b[31m"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        shown = f"{sys.executable} -S -c import sys\\nsys.stdin.read()  # \\x1b[31m"
        assert command_line(process.pid) == shown
        found = proc.read(process.pid)
        assert found is not None
        assert found.command == shown
        process.stdin.close()


def test_a_group_that_is_not_known_stays_as_it_is() -> None:
    """To the kernel, group 0 is that of the caller: the runner itself."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    proc.run_last(0)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
