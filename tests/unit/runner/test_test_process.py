"""What faulthandler writes of an process: kept for as long as it may explain how that ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.outcome import Kind
from pytest_nsisolate.core.traceback_text import TRACE_MARK, relevant
from pytest_nsisolate.runner.test_process import TestProcess, TestRun, memory_file, text_of
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

CRASH = "Fatal Python error: Segmentation fault\n\nCurrent thread: in it\n"
STACKS = "Current thread: in much\n" * 1000


@pytest.fixture
def process() -> Iterator[TestProcess]:
    """One that has the file, and nothing else."""
    one = TestProcess(1, [TestRun(0)], None, Spec())
    one.files.append(memory_file())
    yield one
    os.close(one.files[0])


def ask(process: TestProcess, *answers: str) -> None:
    """Ask for its stacks, and have each answer written in its test."""
    for answer in answers:
        process.mark_trace()
        os.write(process.files[0], answer.encode())


def trace(process: TestProcess) -> str:
    return text_of(process.files[0])


def test_last_answer_is_that_of_a_timeout(process: TestProcess) -> None:
    ask(process, "first", "second")
    assert relevant(trace(process), Kind.TIMED_OUT) == "second"


def test_out_of_memory_before_it_could_answer(process: TestProcess) -> None:
    ask(process, "first", "second", "")
    assert relevant(trace(process), Kind.OUT_OF_MEMORY) == "second"


@pytest.mark.parametrize("stacks", [1, 20], ids=["little", "much"])
def test_crash_outlasts_the_next_question(process: TestProcess, stacks: int) -> None:
    ask(process, STACKS * stacks + CRASH, "")
    assert relevant(trace(process), Kind.CRASHED) == CRASH


def test_question_amid_a_crash(process: TestProcess) -> None:
    ask(process, CRASH[:20], CRASH[20:])
    assert relevant(trace(process), Kind.CRASHED) == CRASH


@pytest.mark.parametrize("kind", [Kind.CRASHED, Kind.EXITED, Kind.STOPPED])
def test_stacks_explain_no_other_ending(process: TestProcess, kind: Kind) -> None:
    ask(process, STACKS, STACKS)
    assert relevant(trace(process), kind) == ""


@pytest.mark.parametrize("first", [STACKS, CRASH], ids=["stacks", "crash-of-a-fork"])
def test_questions_do_not_fill_the_memory(process: TestProcess, first: str) -> None:
    ask(process, first, *[STACKS] * 100)
    assert len(trace(process)) < 20 * len(STACKS)
    assert trace(process).endswith(TRACE_MARK + STACKS)
