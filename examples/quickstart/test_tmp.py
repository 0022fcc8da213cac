"""Two tests use the same fixed name in /tmp: neither sees the file of the other.

Nothing is left in the host's /tmp afterwards.
"""

from pathlib import Path

import pytest

pytestmark = pytest.mark.isolated

LOCK = Path("/tmp/quickstart.lock")


def take_lock():
    with LOCK.open("x") as file:  # "x" fails where the file exists already
        file.write("mine")


def test_takes_the_lock():
    take_lock()
    assert LOCK.read_text() == "mine"


def test_takes_it_too():
    take_lock()
    assert LOCK.read_text() == "mine"
