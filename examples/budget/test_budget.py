"""Tests that keep to their budgets, which the kernel holds: memory, CPU time, processes, CPUs.

It takes control groups, as root or where systemd hands some on: ``pytest --ns-doctor`` tells.
"""

import os
import time

import pytest

pytestmark = pytest.mark.isolated(timeout=100)


@pytest.mark.isolated(memory="64M")
def test_works_in_pieces(tmp_path):
    """256 MiB go through 64 MiB of memory, a piece at a time."""
    total = 0
    for _ in range(64):
        total += len(bytearray(4 << 20))
    assert total == 256 << 20


@pytest.mark.isolated(memory="64M")
def test_knows_what_it_used(sandbox):
    block = bytearray(16 << 20)
    assert 16 << 20 <= sandbox.usage().peak_memory < 64 << 20
    del block


@pytest.mark.isolated(cpus=0.25)
def test_runs_on_a_quarter_of_a_cpu():
    """Half a second of work takes two seconds: how slow a small machine would be."""
    begin = time.monotonic()
    while time.process_time() < 0.5:
        pass
    assert time.monotonic() - begin > 1


@pytest.mark.isolated(pids=16)
def test_gets_by_with_few_processes():
    children = [os.posix_spawn("/bin/sleep", ["sleep", "0"], {}) for _ in range(8)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8


@pytest.mark.isolated(cpuset="0")
def test_sees_one_cpu():
    assert os.sched_getaffinity(0) == {0}
