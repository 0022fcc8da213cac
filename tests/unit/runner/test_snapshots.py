"""Where snapshots stand: made on demand, torn down, broken, forgotten."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.core.messages import GO, PACKETS, SET_UP
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.runner.processes import Parts, Processes
from pytest_nsisolate.runner.snapshot import Snapshot
from pytest_nsisolate.runner.snapshots import Snapshots
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_nsisolate.runner.test_process import TestProcess

WIDE = Snapshot(0, [3, 4, 5], Spec(snapshot="session"), None)
NARROW = Snapshot(1, [4, 5], Spec(snapshot="module"), WIDE)


@pytest.fixture
def processes() -> Iterator[Processes]:
    one = Processes(Parts(plans=[], failures=lambda: 2), select.poll())
    yield one
    for process in list(one.alive.values()):
        one.release(process)


@pytest.fixture
def snapshots(processes: Processes) -> Snapshots:
    return Snapshots(Parts(plans=[], failures=lambda: 2), processes)


def parked(process: TestProcess) -> socket.socket:
    """Park the process of a snapshot; give its end of the channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, PACKETS)
    process.open_channel(ours)
    process.joined()
    return theirs


class Server:
    """What forks the tests of a snapshot."""

    def __init__(self) -> None:
        self.torn_down: list[int] = []
        self.template: Any = self

    def tear_down(self, item: int) -> None:
        self.torn_down.append(item)


def serving(snapshots: Snapshots, snapshot: Snapshot) -> tuple[TestProcess, Server]:
    """A snapshot that has set up."""
    process, server = snapshots.process_of(snapshot), Server()
    parked(process).close()
    process.sent_set_up(0.0)
    given: Any = server
    snapshots.stand(snapshot).serve(given)
    return process, server


def test_a_process_is_created_once(snapshots: Snapshots, processes: Processes) -> None:
    process = snapshots.process_of(NARROW)
    assert snapshots.process_of(NARROW) is process
    assert (process.serves, process.snapshot, process.test.item) == (NARROW, WIDE, 4)
    assert list(processes.alive.values()) == [process]


def test_it_is_told_to_set_up_when_it_is_parked(snapshots: Snapshots) -> None:
    process = snapshots.process_of(NARROW)
    snapshots.send_set_up(process)
    assert not process.running
    with parked(process) as channel:
        snapshots.send_set_up(process)
        assert GO.unpack(channel.recv(GO.size)) == (2, NARROW.number, SET_UP)
    assert process.running


def test_one_that_has_ended_is_told_nothing(snapshots: Snapshots) -> None:
    """Its template says how it ended."""
    process = snapshots.process_of(WIDE)
    parked(process).close()
    snapshots.send_set_up(process)
    assert not process.running


def test_frames_are_kept_for_the_first_test(snapshots: Snapshots) -> None:
    process = snapshots.process_of(WIDE)
    process.test.frames.append(("warning", {}))
    stand = snapshots.stand(WIDE)
    stand.keep_frames(process)
    assert list(stand.setup_frames) == [("warning", {})]
    assert not process.test.frames
    assert not stand.reportable
    process.debug()
    assert stand.reportable


def test_it_tears_down_after_its_last_test(snapshots: Snapshots) -> None:
    process, server = serving(snapshots, WIDE)
    assert snapshots.tear_down(WIDE, 5) is process
    assert server.torn_down == [5]
    assert snapshots.ended(WIDE, Outcome(Kind.COMPLETED)) is None
    assert snapshots.stand(WIDE).to_make
    assert not list(snapshots.narrowest_first())


def test_one_that_is_not_there_tears_down_nothing(snapshots: Snapshots) -> None:
    assert snapshots.tear_down(WIDE, 5) is None
    snapshots.process_of(WIDE)
    assert snapshots.tear_down(WIDE, 5) is None


@pytest.mark.parametrize(
    ("kind", "expected"), [(Kind.COMPLETED, Kind.EXITED), (Kind.CRASHED, Kind.CRASHED)]
)
def test_one_that_ends_unasked_breaks_its_tests(
    snapshots: Snapshots, kind: Kind, expected: Kind
) -> None:
    serving(snapshots, WIDE)
    broken = snapshots.ended(WIDE, Outcome(kind, 11))
    assert broken is not None
    assert (broken.kind, broken.number, broken.snapshot) == (expected, 11, "session")
    assert snapshots.broken(WIDE) is broken
    assert snapshots.broken(NARROW) is broken, "it is inside of the one that broke"
    assert not snapshots.stand(WIDE).to_make


def test_what_is_forgotten_is_made_again(snapshots: Snapshots) -> None:
    serving(snapshots, WIDE)
    serving(snapshots, NARROW)
    assert list(snapshots.narrowest_first()) == [NARROW, WIDE]
    for snapshot in snapshots.narrowest_first():
        snapshots.forget(snapshot)
    assert snapshots.stand(WIDE).to_make
    assert not list(snapshots.narrowest_first())


def test_descriptors_are_closed(snapshots: Snapshots, processes: Processes) -> None:
    process = snapshots.process_of(WIDE)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    parked(process).close()
    processes.release(process)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    assert processes.descriptors() == []
