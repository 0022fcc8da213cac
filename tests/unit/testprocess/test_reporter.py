"""What a test process reports at the end of a test, and how frames that are too large are cut."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key

from pytest_nsisolate.core import wire
from pytest_nsisolate.testprocess.frame_stream import Sender
from pytest_nsisolate.testprocess.reporter import Ending

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEM: Any = SimpleNamespace()


@pytest.fixture
def session() -> Any:
    """A session with a JUnit report that has one property already."""
    config = SimpleNamespace(stash=pytest.Stash())
    config.stash[xml_key] = SimpleNamespace(global_properties=[("old", "1")])
    return SimpleNamespace(config=config, shouldfail=False, shouldstop=False)


def test_only_changes_of_the_session_are_reported(session: Any) -> None:
    ending = Ending(session)
    ending.start_process()
    ending.start_test()
    fields = ending.fields(ITEM, failed=True)
    assert fields["failed"] is True
    assert fields["wall"] >= 0
    assert not {"session", "suite properties", "reruns"} & fields.keys()
    session.shouldstop = "enough"
    session.config.stash[xml_key].global_properties.append(("new", "2"))
    fields = ending.fields(ITEM, failed=False)
    assert fields["session"] == (False, "enough")
    assert fields["suite properties"] == [("new", "2")]
    ending.end_test()
    assert not {"session", "suite properties"} & ending.fields(ITEM, failed=False).keys()


def test_properties_of_a_snapshots_fixtures_are_reported_by_its_tests(session: Any) -> None:
    ending = Ending(session)
    session.config.stash[xml_key].global_properties.append(("fixture", "2"))
    ending.start_process()
    ending.start_test()
    assert ending.fields(ITEM, failed=False)["suite properties"] == [("fixture", "2")]


@pytest.fixture
def sender(tmp_path: Any) -> Iterator[Sender]:
    """Writes its frames to a file."""
    one = Sender()
    one.open(os.open(tmp_path / "frames", os.O_WRONLY | os.O_CREAT))
    yield one
    one.close()


def frames(path: Any) -> list[tuple[str, Any]]:
    return list(wire.Decoder().feed((path / "frames").read_bytes()))


def test_a_report_that_is_too_large_is_cut(
    sender: Sender, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_REPORTS", 200_000)
    text = "x" * 10_000_000
    with pytest.raises(wire.FrameTooLong):
        sender._stream.send("report", {"longrepr": text}, most=wire.MAX_REPORTS)  # type: ignore[union-attr]
    sender.send("report", {"longrepr": text})
    ((kind, payload),) = frames(tmp_path)
    assert kind == "report"
    assert 0 < len(payload["longrepr"]) < len(text)


def test_a_fork_of_the_test_sends_no_output(sender: Sender, tmp_path: Any) -> None:
    sender.send_output("stdout", "mine")
    pid = os.fork()
    if pid == 0:
        try:
            sender.send_output("stdout", "its own")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert frames(tmp_path) == [("output", ["stdout", "mine"])]


def state(sender: Sender) -> tuple[bool, bool, bool]:
    return sender.is_open, sender.mine, sender.sending


def test_nothing_is_sent_before_the_first_pipe_and_after_the_last() -> None:
    one = Sender()
    assert state(one) == (False, False, False)
    one.send_output("stdout", "nowhere")
    read, write = os.pipe()
    one.open(write)
    assert state(one) == (True, True, False)
    one.close()
    assert state(one) == (False, False, False)
    assert os.read(read, 1) == b""
    os.close(read)
