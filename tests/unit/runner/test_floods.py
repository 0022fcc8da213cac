"""Output that is too much, as the runner sees it while a test runs."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.core.outcome import Kind
from pytest_nsisolate.runner import floods
from pytest_nsisolate.runner.test_process import LOOK_EVERY, TestProcess, TestRun
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1000.0


@pytest.fixture
def process() -> Iterator[TestProcess]:
    """One that runs, and has its files."""
    one = TestProcess(1, [TestRun(0)], None, Spec())
    one.open_files()
    one.sent_next()
    one.start_clock(NOW)
    yield one
    one.release()


def test_the_first_look_is_a_moment_later(process: TestProcess) -> None:
    assert list(floods.moments([process])) == [NOW + LOOK_EVERY]
    os.write(process.files[1], bytes(1 << 16))
    assert floods.found(process, NOW) is None


def test_little_is_no_flood(process: TestProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floods, "MAX_OUTPUT", 1 << 20)
    os.write(process.files[1], bytes(1 << 16))
    assert floods.found(process, NOW + 1) is None
    assert list(floods.moments([process])) == [NOW + 1 + LOOK_EVERY]


@pytest.mark.skipif(not LINUX, reason="only Linux has memfd_create(2) and seals")
def test_a_flood_ends_and_grows_no_more(
    process: TestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floods, "MAX_OUTPUT", 1 << 20)
    os.write(process.files[2], bytes(2 << 20))
    outcome = floods.found(process, NOW + 1)
    assert outcome is not None
    assert (outcome.kind, outcome.limit) == (Kind.TOO_MUCH_OUTPUT, 1 << 20)
    with pytest.raises(PermissionError) as caught:
        os.write(process.files[2], b"x")
    assert caught.value.errno == errno.EPERM


def test_one_that_does_not_run_is_not_looked_at(process: TestProcess) -> None:
    process.release()
    assert list(floods.moments([process])) == []
    assert floods.found(process, NOW + 1) is None
