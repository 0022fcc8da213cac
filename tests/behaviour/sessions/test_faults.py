"""Whatever system call of a session fails, and whichever process is killed, no test is lost.

A sample of what ``tox -e faults`` tries: calls of the session each fail once, or kill the process
that makes them. Each run ends, each test has one outcome that is not better than its own, what
failed names its stage and a next step, and nothing stays behind.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from faults.campaign import attempt, faults, record, sample
from faults.sessions import SESSIONS
from faults.supervisor import Fault, Site

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox", "root", "faults")]

SEED, SAMPLE = 1, 6
PLAIN = SESSIONS[0]
FORK = "runner", "sendmsg", "socket"


@pytest.mark.parametrize(
    ("site", "number", "headline"),
    [
        (("runner", "socketpair", ""), errno.EMFILE, ""),  # the first is tried again
        (("runner", "pidfd_open", ""), errno.ENOMEM, "start the keeper: ENOMEM"),
        (("keeper", "sendto", "socket"), 0, "start the keeper: EPIPE"),
        (("runner", "clone", ""), errno.EAGAIN, "start the template: EAGAIN"),
        (("template", "openat", "/proc/self/fd"), errno.EMFILE, "start the template /proc"),
        (("runner", "memfd_create", ""), errno.EMFILE, "prepare the test process: EMFILE"),
        (FORK, errno.ENOMEM, ""),
        (("init 1", "mount", "/proc"), errno.EPERM, "mount /proc: EPERM"),
        (("init 1", "mount", "/proc"), 0, "build the sandbox: EPIPE"),
        (("test 1", "fcntl", "dupfd"), errno.EMFILE, "prepare the test process: EMFILE"),
        (("runner", "write", "pipe"), errno.ENOSPC, "let the test go: ENOSPC"),
        (("template", "poll", ""), errno.ENOMEM, ""),
    ],
)
def test_survived(tmp_path: Path, site: tuple[str, str, str], number: int, headline: str) -> None:
    """The run goes on with that test failed, or all fail where nothing else is possible."""
    trial = attempt(PLAIN, Fault(Site(*site), number), tmp_path)
    assert trial.reached, str(trial.result)
    assert not trial.wrong, f"{trial}\n{trial.result}"
    said = any(f"SANDBOX FAILED at {headline}" in one for one in trial.headlines)
    assert said or not headline, f"{trial}\n{trial.headlines}"


@pytest.mark.parametrize(
    ("name", "site", "number", "headline"),
    [
        ("without namespaces", ("test 1", "clone", ""), errno.ENOSYS, "fork the test process"),
        ("a snapshot", ("test 1", "poll", ""), errno.ENOMEM, "serve as the snapshot: ENOMEM"),
        ("a snapshot", ("test 1", "openat", "/proc/self/maps"), errno.EACCES, ""),
        ("a snapshot", ("test 1", "dup2", ""), errno.EINTR, "set up the snapshot: EINTR"),
        ("a snapshot", (*FORK, 4), errno.ENOMEM, "serve as the snapshot: EPIPE"),
        pytest.param(
            *("a link and a port of the host", ("runner", "openat", "/proc/self/fd")),
            *(errno.EMFILE, "look for the files of the links /proc/self/fd: EMFILE"),
            marks=pytest.mark.needs("veth"),
        ),
    ],
)
def test_survived_elsewhere(
    tmp_path: Path,
    name: str,
    site: tuple[str, str, str] | tuple[str, str, str, int],
    number: int,
    headline: str,
) -> None:
    """As above, in sessions of another kind."""
    (session,) = (one for one in SESSIONS if one.name == name)
    trial = attempt(session, Fault(Site(*site), number), tmp_path)
    assert trial.reached, str(trial.result)
    assert not trial.wrong, f"{trial}\n{trial.result}"
    said = any(f"SANDBOX FAILED at {headline}" in one for one in trial.headlines)
    assert said or not headline, f"{trial}\n{trial.headlines}"


@pytest.mark.parametrize("count", range(1, 6))
def test_a_snapshot_that_can_not_join_a_pid_namespace(tmp_path: Path, count: int) -> None:
    """Nor return to its own after a fork: the locks that are held around a fork are released."""
    (session,) = (one for one in SESSIONS if one.name == "a snapshot")
    trial = attempt(session, Fault(Site("test 1", "setns", "pid", count), errno.EPERM), tmp_path)
    assert trial.reached, str(trial.result)
    assert not trial.wrong, f"{trial}\n{trial.result}"


def test_sample(tmp_path: Path) -> None:
    """As above, of what else there is."""
    (tmp_path / "record").mkdir()
    everything = list(faults(PLAIN, record(PLAIN, tmp_path / "record"), set()))
    for number, fault in enumerate(sample(everything, SAMPLE, SEED)):
        folder = tmp_path / str(number)
        folder.mkdir()
        trial = attempt(PLAIN, fault, folder)
        assert not trial.wrong, f"{trial}\n{trial.result}"
