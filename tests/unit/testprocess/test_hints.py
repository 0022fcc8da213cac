"""Hints at what differs in a sandbox."""

from __future__ import annotations

import pytest

from pytest_nsisolate.testprocess.hints import Facts, hints

PARENT = "os.getppid() is 0"
PIDS = "isolated(pids=NUMBER)"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("assert os.getppid() > 1", PARENT),
        ("assert 0 == worker.ppid", PARENT),
        ("psutil.NoSuchProcess: process PID not found (pid=0)\n  me.parents()", PARENT),
        ("RuntimeError: can't start new thread", PIDS),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", PIDS),
    ],
)
def test_hint(text: str, wanted: str) -> None:
    shown = "\n".join(f"E   {line}" for line in text.splitlines())
    assert wanted in hints(shown, Facts(sandbox=True, pids=None))


@pytest.mark.parametrize(
    "text", ["E  1 == 2", "E  path.parents()", "E  ppids", "    os.getppid()\nE  x"]
)
def test_no_hint(text: str) -> None:
    assert hints(text, Facts(sandbox=True, pids=None)) == ""


def test_only_where_it_is_different() -> None:
    assert hints("E  getppid", Facts(sandbox=False, pids=None)) == ""
    assert hints("E  can't start new thread", Facts(sandbox=True, pids=100)) == ""
