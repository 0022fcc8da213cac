"""pytest's debugger asks before it speaks, and input is taken no further than it is asked for."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.debugging import pytestPDB

from helpers.hosts import DEADLINE
from pytest_nsisolate.testprocess import terminal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked by debuggers that began meanwhile, each of which has nothing to say."""
    said: list[str] = []

    def begin(cls: Any, /, method: str, *args: object, **kwargs: object) -> Any:
        said.append(f"begins {method}")
        return type("Debugger", (), {"set_trace": lambda self, frame: None})()

    monkeypatch.setattr(pytestPDB, "_init_pdb", classmethod(begin))
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    return said


def test_a_debugger_asks_first(asked: list[str]) -> None:
    """With the name of the method by which it begins."""
    terminal.announce(asked.append)
    pytest.set_trace()
    assert asked == ["set_trace", "begins set_trace"]


def test_the_innermost_is_asked(asked: list[str]) -> None:
    """Where it is announced once more, as for pytest in a test, the one before is not asked."""
    outer: list[str] = []
    terminal.announce(outer.append)
    terminal.announce(asked.append)
    pytest.set_trace()
    assert asked == ["set_trace", "begins set_trace"]
    assert outer == []


READS = """
import os, sys
from pytest_nsisolate.testprocess.terminal import _frugal
sys.stdin = _frugal(sys.stdin, 0)
print([reader() for reader in (input, sys.stdin.readline, lambda: sys.stdin.read(2))])
print(os.read(0, 99).decode())
"""


@pytest.mark.parametrize("given", ["pipe", "file"])
def test_input_is_left(given: str, tmp_path: Path) -> None:
    """Lines and characters, of several bytes too, are read without what comes after them."""
    path = tmp_path / "input"
    if given == "pipe":
        reader, writer = os.pipe()
    else:
        writer, reader = os.open(path, os.O_WRONLY | os.O_CREAT), os.open(path, os.O_RDONLY)
    os.write(writer, "äpfel\nb\n€-rest\n".encode())
    os.close(writer)
    with open(reader, "rb") as stream:
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", READS],
            stdin=stream,
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE,
            check=True,
        )
    assert done.stdout == "['äpfel', 'b\\n', '€-']\nrest\n\n"


@pytest.mark.parametrize("stream", [None, io.StringIO(), sys.__stderr__])
def test_other_input_stays(stream: Any) -> None:
    """No stream, one in memory, one of another descriptor: nothing is put in its place."""
    assert terminal._frugal(stream, 0) is stream
