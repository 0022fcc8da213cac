"""``nsisolate ns PID``: the namespaces of a process, who shares them, and what they lie in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from helpers.commands import STANDS, Commands
from helpers.hosts import DEADLINE, marked, namespaces, proc_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup")


@contextmanager
def sandboxed(commands: Commands, *options: str) -> Iterator[int]:
    """The pid, as seen from here, of a process in a sandbox."""
    words = ("--", sys.executable, "-I", "-S", "-c", STANDS)
    process = commands.start("run", *options, *words)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        inside = [
            pid
            for pid in marked(commands.marker)
            if re.search(rb"^NSpid:.*\t2$", proc_bytes(pid, "status"), re.MULTILINE)
        ]
        assert len(inside) == 1
        yield inside[0]
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)


def row(text: str, kind: str) -> tuple[int, str, str]:
    """Inode, whether the caller is in it, and who shares it."""
    found = re.search(rf"^{kind} +(\d+)  (in it|outside) +(.*)$", text, re.MULTILINE)
    assert found, text
    return int(found[1]), found[2], found[3]


def chain(text: str, kind: str) -> list[str]:
    """The lines of one chain of nested namespaces."""
    return text.partition(f"{kind} namespaces, from")[2].partition("\n\n")[0].splitlines()[1:]


@pytest.mark.needs("sandbox")
def test_a_process_of_a_sandbox(commands: Commands) -> None:
    with sandboxed(commands, "--share", "uts") as pid:
        done = Commands(path=commands.path)("ns", str(pid))
        shown = namespaces(pid)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"process {pid}: ")
    assert "its pid further inside: " in done.stdout
    assert done.stdout.partition("further inside: ")[2].splitlines()[0].endswith("then 2")
    for kind in KINDS:
        inode, mine, others = row(done.stdout, kind)
        assert inode == shown[kind]
        assert mine == ("in it" if kind == "uts" else "outside")
        # PID 1 of the sandbox is in all of them.
        assert re.match(r"\d", others), (kind, others)
    users, pids = chain(done.stdout, "user"), chain(done.stdout, "pid")
    # The host's or what is seen of it, the session's, the sandbox's.
    assert len(users) >= 3
    assert len(pids) >= 3
    assert str(shown["user"]) in users[-1]
    assert f"made by uid {os.geteuid()}" in users[-1]
    assert f"belongs to user namespace {shown['user']}" in pids[-1]
    assert str(os.stat("/proc/self/ns/pid").st_ino) in pids[0]
    assert len(users[-1]) - len(users[-1].lstrip()) > len(users[0]) - len(users[0].lstrip())


def test_oneself(commands: Commands) -> None:
    done = commands("ns", "self")
    assert done.returncode == 0
    assert row(done.stdout, "net")[:2] == (os.stat("/proc/self/ns/net").st_ino, "in it")
    assert f" {os.getpid()}" in done.stdout or "more" in done.stdout
    assert "outside" not in done.stdout


def test_a_pid_namespace_that_has_no_process_yet(commands: Commands) -> None:
    source = (
        "import ctypes, sys; libc = ctypes.CDLL(None); "
        "assert libc.unshare(0x30000000 if __import__('os').geteuid() else 0x20000000) == 0; "
        "print('up', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        wanted = os.readlink(f"/proc/{process.pid}/ns/pid")
        done = commands("ns", str(process.pid))
    finally:
        process.communicate()
    inode, _, others = row(done.stdout, "pid")
    assert f"pid:[{inode}]" == wanted
    assert "its next child will be in" not in others  # there is none before the first child


@pytest.mark.parametrize("word", ["x", "-1", "0", "1.5", "99999999999"])
def test_no_pid(commands: Commands, word: str) -> None:
    done = commands("ns", "--", word) if word.startswith("-") else commands("ns", word)
    assert done.returncode == 2
    assert done.stdout == ""


def test_no_such_process(commands: Commands) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    done = commands("ns", str(process.pid))
    assert done.returncode == 1
    assert done.stderr == (
        f"nsisolate ns: there is no process {process.pid} here (`ps -e` lists them)\n"
    )


@pytest.mark.needs("root")
def test_another_users_process(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = Commands(path=tmp_path, uid=65534)("ns", str(os.getpid()))
    assert done.returncode == 1
    assert "not shown to you: it is another user's" in done.stderr
    assert "sudo nsisolate ns" in done.stderr
