"""What the figures of getrusage(2) and wait4(2) mean, on each system."""

from __future__ import annotations

import os
import resource
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_nsisolate.core.messages import ENDED, PACKETS
from pytest_nsisolate.runner.template_client import Template
from pytest_nsisolate.testprocess import template, usage

SYSTEMS = pytest.mark.parametrize(("system", "peak"), [("linux", 1024 * 3000), ("darwin", 3000)])


@SYSTEMS
def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch, system: str, peak: int) -> None:
    """Linux counts it in KiB, macOS in bytes; the test itself says it in bytes of either."""
    given: Any = resource.struct_rusage([0.0, 0.0, 3000] + [0] * 13)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: given)
    assert usage.peak_bytes(3000) == peak
    assert usage.rusage()["peak memory"] == peak


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
