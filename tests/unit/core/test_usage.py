"""Figures of getrusage(2), wait4(2) and cgroups: their units, sums and what a process claims."""

from __future__ import annotations

import os
import resource
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_nsisolate.core import usage
from pytest_nsisolate.core.messages import ENDED, PACKETS
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.runner.servers.template_client import Template
from pytest_nsisolate.testprocess import template

SYSTEMS = pytest.mark.parametrize(("system", "peak"), [("linux", 1024 * 3000), ("darwin", 3000)])


@SYSTEMS
def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch, system: str, peak: int) -> None:
    """Linux counts it in KiB, macOS in bytes; the test itself says it in bytes of either."""
    given: Any = resource.struct_rusage([0.0, 0.0, 3000] + [0] * 13)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: given)
    assert usage.peak_bytes(3000) == peak
    assert usage.of_this_process().peak_memory == peak


@SYSTEMS
def test_the_template_says_the_same(
    monkeypatch: pytest.MonkeyPatch, system: str, peak: int
) -> None:
    """Of a test that crashed, which could not say it itself."""
    given = resource.struct_rusage([1.5, 0.25, 3000] + [0] * 13)
    monkeypatch.setattr(sys, "platform", system)
    ours, theirs = socket.socketpair(socket.AF_UNIX, PACKETS)
    with ours, theirs:
        server: Any = SimpleNamespace(control=theirs, numbers={7: 1}, pids={1: 7}, guards=set())
        template._Server.tell(server, 7, 11, given)
        runner = Template(os.getpid(), ours)
        kind, number, status, text = runner.receive()
    assert (kind, number, status) == (ENDED, 1, 11)
    assert text.split()[:3] == [b"1.500000", b"0.250000", str(peak).encode()]


def test_sum_of_a_process_and_its_children() -> None:
    """CPU time and blocks of 512 bytes add up; of the memory the larger one counts."""
    own, children = (
        resource.struct_rusage([1.0, 0.5, 3000, 0, 0, 0, 0, 0, 0, 4, 2] + [0] * 5),
        resource.struct_rusage([2.0, 0.25, 2000, 0, 0, 0, 0, 0, 0, 1, 0] + [0] * 5),
    )
    found = Usage.of_rusage(own, children)
    assert found == Usage(usage.peak_bytes(3000), 3.0, 0.75, None, 5 * 512, 2 * 512)
    assert found.cpu == 3.75
    assert Usage.of_wire(list(found.to_wire())) == found


@pytest.mark.parametrize(
    "claim", ["1", None, True, -1, float("nan"), float("inf"), 10**400, [1], {"a": 1}]
)
def test_figures_that_make_no_sense(claim: object) -> None:
    """A test process can send any value: one bad figure discards all."""
    for place in range(5):
        figures: list[object] = [1.0, 1.0, 5, 512, 0]
        figures[place] = claim
        assert Usage.of_wire(figures) == Usage()


@pytest.mark.parametrize("figures", [None, 5, "12345", {}, [1.5, 0, 4096], [0] * 6])
def test_no_list_of_figures(figures: object) -> None:
    assert Usage.of_wire(figures) == Usage()
    assert Usage().cpu is None


def test_figures_of_one_test_of_several() -> None:
    """CPU time and I/O count from the test before; the peak is the process's."""
    before, after = Usage(4096, 1.0, 0.5, None, 512, 0), Usage(8192, 3.0, 0.75, None, 512, 1024)
    assert after.since(before) == Usage(8192, 2.0, 0.25, None, 0, 1024)
    assert after.without_cpu(1.0, 5.0) == Usage(8192, 2.0, 0.0, None, 512, 1024)
    assert Usage().without_cpu(1.0, 1.0) == Usage()


def test_a_cgroup_comes_first() -> None:
    """wait4(2) gives what the cgroup does not measure."""
    measured, by_wait4 = Usage(peak_memory=5, pids_peak=2), Usage(9, 1.0, 2.0)
    assert measured.missing(by_wait4) == {"cpu_user", "cpu_system"}
    assert measured.filled(by_wait4) == Usage(5, 1.0, 2.0, 2)
    whole = Usage(5, 1.0, 2.0, 3, 4, 6, frozenset({"pids_peak"}))
    assert whole.memory_and_pids() == Usage(5, pids_peak=3, sampled=frozenset({"pids_peak"}))
    assert list(whole.figures().values()) == [5, 1.0, 2.0, 3, 4, 6]
