"""Every ending of a test process has a name and a text."""

from __future__ import annotations

import errno

import pytest

from pytest_nsisolate.core.outcome import Kind, Outcome, left_text, signal_name
from pytest_nsisolate.core.usage import Usage

HEADLINES = [
    (Outcome(Kind.CRASHED, 11), "CRASHED with signal 11 (SIGSEGV)"),
    (Outcome(Kind.CRASHED, 63), "CRASHED with signal 63 (SIG63)"),
    (Outcome(Kind.EXITED, 3), "EXITED with code 3 before reporting"),
    (Outcome(Kind.STOPPED, 19), "STOPPED by signal 19 (SIGSTOP)"),
    (Outcome(Kind.TIMED_OUT, timeout=10.0), "TIMED OUT after 10 s"),
    (Outcome(Kind.TIMED_OUT, timeout=0.25), "TIMED OUT after 0.25 s"),
    (
        Outcome(Kind.OUT_OF_MEMORY, limit=64 << 20, usage=Usage(peak_memory=64 << 20)),
        "OUT OF MEMORY: limit 64 MiB, peak 64 MiB",
    ),
    (Outcome(Kind.OUT_OF_MEMORY, limit=3 << 29), "OUT OF MEMORY: limit 1536 MiB, peak unknown"),
    (Outcome(Kind.TOO_MANY_PROCESSES, limit=64), "TOO MANY PROCESSES: limit 64"),
    (Outcome(Kind.TOO_MUCH_OUTPUT, limit=1 << 30), "TOO MUCH OUTPUT: limit 1024 MiB"),
    (Outcome(Kind.TRUNCATED, detail="cut"), "REPORT BROKEN: cut"),
    (
        Outcome(Kind.SANDBOX_FAILED, errno.EPERM, "mount", "/tmp"),
        "SANDBOX FAILED at mount /tmp: EPERM",
    ),
    (Outcome(Kind.SANDBOX_FAILED, errno.ENOSPC, "unshare"), "SANDBOX FAILED at unshare: ENOSPC"),
]


@pytest.mark.parametrize(("outcome", "headline"), HEADLINES, ids=[case[1] for case in HEADLINES])
def test_headline(outcome: Outcome, headline: str) -> None:
    assert outcome.headline == headline


def test_every_kind_has_its_texts() -> None:
    """What went wrong says what to do next; the sandbox's failures are explained elsewhere."""
    assert {outcome.kind for outcome, _ in HEADLINES} | {Kind.COMPLETED} == set(Kind)
    for outcome, headline in HEADLINES:
        assert outcome.short
        if outcome.kind is not Kind.SANDBOX_FAILED:
            assert outcome.advice, headline


@pytest.mark.parametrize(
    ("status", "kind", "number"),
    [
        (11, Kind.CRASHED, 11),
        (11 | 0x80, Kind.CRASHED, 11),
        (3 << 8, Kind.EXITED, 3),
        (0, Kind.EXITED, 0),
    ],
)
def test_of_status(status: int, kind: Kind, number: int) -> None:
    """A raw wait status; the core-dump bit does not matter."""
    found = Outcome.of_status(status)
    assert (found.kind, found.number) == (kind, number)


def test_advice_of_a_crash() -> None:
    """It points to the native traceback where there is one."""
    assert "below" in Outcome(Kind.CRASHED, 11, trace="Fatal Python error").advice
    assert "below" not in Outcome(Kind.CRASHED, 11).advice


def test_left_running() -> None:
    assert left_text(["sleep 9 (pid 3)", "x (pid 4)"]) == (
        "left running: sleep 9 (pid 3)\nleft running: x (pid 4)\n"
    )


def test_real_time_signal() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(1000) == "SIG1000"
