"""Tests that forget what they started. All pass, and **the run fails**: see conftest.py.

However it was started, in a session of its own, by way of a shell that has ended, or as a daemon
that forked twice, it can't leave the sandbox. The next test never meets it.
"""

import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.isolated(timeout=60)


def running(name):
    """Count the processes of that name which this test can see."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        found += path.read_text().strip() == name
    return found


def wait_for(name):
    while not running(name):
        time.sleep(0.01)


forgotten = []


def test_forgets_a_child():
    forgotten.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
    wait_for("sleep")


def test_forgets_what_a_shell_started():
    subprocess.run(["sh", "-c", "sleep 2000 &"], check=True)
    wait_for("sleep")


def test_forgets_a_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "3000"])
        os._exit(0)
    os.wait()
    wait_for("sleep")


def test_sees_none_of_them():
    assert running("sleep") == 0


def test_cleans_up():
    """This one is no leak."""
    with subprocess.Popen(["sleep", "4000"]) as child:
        child.terminate()
