"""Counters of perf events: what is counted, for whom, and what is said where it can't be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from helpers.hosts import NOBODY, become
from pytest_nsisolate.cgroups import perf_counters
from pytest_nsisolate.cgroups.perf_counters import EVENTS, Counters
from pytest_nsisolate.explain.explain import explain

CHILD = """
import os, sys
print("up", flush=True)
sys.stdin.readline()
if not os.fork():
    x = bytearray(8 << 20)
    os._exit(0)
os.wait()
"""


@pytest.mark.needs("perf")
def test_a_process_and_its_children() -> None:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    with Counters(process.pid) as counters:
        before = counters.values()
        process.communicate("go\n")
        after = counters.values()
    assert after.keys() | counters.errors.keys() == EVENTS.keys()
    assert {"page_faults", "context_switches", "cpu_migrations"} <= after.keys()
    assert after["page_faults"] - before["page_faults"] >= (8 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert after["context_switches"] >= 1
    assert counters.values() == {}


def test_what_is_not_allowed_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(perf_counters, "perf_event_open", refuse)
    with Counters() as counters:
        assert counters.values() == {}
    assert counters.errors.keys() == EVENTS.keys()
    error = counters.errors["page_faults"]
    assert (error.stage, error.errno) == ("count page faults", errno.EACCES)
    assert "perf_event_paranoid" in explain(error).mend


AS_USER = """
import os
from pytest_nsisolate.cgroups.perf_counters import Counters
with Counters() as counters:
    x = bytearray(8 << 20)
    print(sorted(counters.values()), sorted(counters.errors))
"""


@pytest.mark.needs("root", "unprivileged")
def test_a_user_gets_no_false_zero() -> None:
    """What happens in the kernel is not counted as 0 where the kernel may not be looked at."""
    done = subprocess.run(
        [*become(NOBODY), sys.executable, "-c", AS_USER],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    with open("/proc/sys/kernel/perf_event_paranoid", encoding="ascii") as file:
        level = int(file.read())
    assert ("context_switches" in done.stdout.partition("]")[2]) == (level > 1), done.stdout
