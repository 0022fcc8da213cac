"""A test forgets a daemon: it ends with the sandbox, and the next test can't see it.

The report of the first test names what was left running (``pytest -rP`` shows it).
"""

import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.isolated


def running():
    """Return the command line of every process that this test can see."""
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [line.replace(b"\0", b" ").decode().strip() for line in lines]


forgotten = []


def test_forgets_a_daemon():
    forgotten.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
    while "sleep 1000" not in running():  # until it has started
        time.sleep(0.01)


def test_sees_no_daemon():
    assert "sleep 1000" not in running()
