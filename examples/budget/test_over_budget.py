"""Tests that go over their budgets: they **fail on purpose**, to show what is said then.

Each fails alone; the one between them, and the session, are not touched.
"""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.isolated(timeout=100)


@pytest.mark.isolated(memory="64M")
def test_takes_too_much_memory():
    assert len(bytearray(200 << 20)) == 200 << 20


@pytest.mark.isolated(memory="64M")
def test_fills_tmp_with_too_much():
    """Files in the private /tmp are memory, and count."""
    with Path("/tmp/export").open("wb") as file:
        file.writelines(bytes(1 << 20) for _ in range(200))


@pytest.mark.isolated(memory="64M")
def test_between_them_passes():
    assert len(bytearray(8 << 20)) == 8 << 20


@pytest.mark.isolated(pids=8)
def test_starts_too_many_processes():
    for _ in range(20):
        os.posix_spawn("/bin/sleep", ["sleep", "100"], {})
