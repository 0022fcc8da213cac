"""Processes are named by what their command lines say, in characters that no terminal obeys."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_nsisolate.core.linux import namespace_files, proc
from pytest_nsisolate.core.linux.proc import command_line, readable

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


def test_stat_of_a_process_whose_name_has_brackets() -> None:
    """The fields are counted from the last bracket on."""
    code = "open('/proc/self/comm', 'w').write('a) (b 9'); print(flush=True); input()"
    words = [sys.executable, "-S", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = proc.stat(process.pid)
        assert found is not None
        assert (found.name, found.parent) == (b"a) (b 9", os.getpid())
        assert found.state in "RS"
        assert proc.parent(process.pid) == os.getpid()
        assert proc.start_of(process.pid) == found.start > 0
        assert process.pid in proc.children(os.getpid())
        assert process.pid in proc.pids()
        assert proc.pids_of(process.pid)[0] == process.pid
        process.stdin.close()


def test_a_process_that_has_ended() -> None:
    """It is left out, not an error."""
    with subprocess.Popen(["true"]) as process:
        pass
    pid = process.pid
    assert (proc.stat(pid), proc.parent(pid), proc.start_of(pid)) == (None, 0, None)
    assert (proc.status(pid), proc.pids_of(pid), proc.read(pid)) == ({}, (), None)
    assert (proc.children(pid), command_line(pid)) == ([], "")


def test_what_python_starts_itself_is_no_leak() -> None:
    tracker = "python -c from multiprocessing.resource_tracker import main;main(3)"
    assert [proc.left_by_a_test(one) for one in ("sleep 9", "", tracker)] == [True, False, False]
    assert proc.line_of(3, "sleep 9") == "sleep 9 (pid 3)"
    assert proc.line_of(0, "2 more") == "2 more"


def test_namespaces_of_this_process() -> None:
    """The caller shares each of them, and the kernel's inodes are those of stat(2)."""
    found = namespace_files.look(os.getpid())
    assert found.pids_inside[0] == os.getpid()
    for one in found.shared:
        assert one.mine
        assert one.inode == os.stat(f"/proc/self/ns/{one.kind}").st_ino
        assert os.getpid() not in one.processes
    assert {one.kind for one in found.shared} >= {"user", "pid", "mnt", "net"}
    with pytest.raises(ProcessLookupError):
        namespace_files.look((1 << 22) + 1)


def test_a_group_that_is_not_known_stays_as_it_is() -> None:
    """To the kernel, group 0 is that of the caller: the runner itself."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    proc.run_last(0)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
