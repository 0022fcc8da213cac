"""What faulthandler writes of an attempt: kept for as long as it may explain how that ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.outcome import TRACE_MARK, Kind, relevant
from pytest_nsisolate.runner.test_process import Attempt, Turn, memory_file, text_of
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

CRASH = "Fatal Python error: Segmentation fault\n\nCurrent thread: in it\n"
STACKS = "Current thread: in much\n" * 1000


@pytest.fixture
def attempt() -> Iterator[Attempt]:
    """One that has the file, and nothing else."""
    one = Attempt(1, [Turn(0)], None, Spec())
    one.files.append(memory_file())
    yield one
    os.close(one.files[0])


def ask(attempt: Attempt, *answers: str) -> None:
    """Ask for its stacks, and have each answer written in its turn."""
    for answer in answers:
        attempt.mark_trace()
        os.write(attempt.files[0], answer.encode())


def trace(attempt: Attempt) -> str:
    return text_of(attempt.files[0])


def test_last_answer_is_that_of_a_timeout(attempt: Attempt) -> None:
    ask(attempt, "first", "second")
    assert relevant(trace(attempt), Kind.TIMED_OUT) == "second"


def test_out_of_memory_before_it_could_answer(attempt: Attempt) -> None:
    ask(attempt, "first", "second", "")
    assert relevant(trace(attempt), Kind.OUT_OF_MEMORY) == "second"


@pytest.mark.parametrize("stacks", [1, 20], ids=["little", "much"])
def test_crash_outlasts_the_next_question(attempt: Attempt, stacks: int) -> None:
    ask(attempt, STACKS * stacks + CRASH, "")
    assert relevant(trace(attempt), Kind.CRASHED) == CRASH


def test_question_amid_a_crash(attempt: Attempt) -> None:
    ask(attempt, CRASH[:20], CRASH[20:])
    assert relevant(trace(attempt), Kind.CRASHED) == CRASH


@pytest.mark.parametrize("kind", [Kind.CRASHED, Kind.EXITED, Kind.STOPPED])
def test_stacks_explain_no_other_ending(attempt: Attempt, kind: Kind) -> None:
    ask(attempt, STACKS, STACKS)
    assert relevant(trace(attempt), kind) == ""


@pytest.mark.parametrize("first", [STACKS, CRASH], ids=["stacks", "crash-of-a-fork"])
def test_questions_do_not_fill_the_memory(attempt: Attempt, first: str) -> None:
    ask(attempt, first, *[STACKS] * 100)
    assert len(trace(attempt)) < 20 * len(STACKS)
    assert trace(attempt).endswith(TRACE_MARK + STACKS)
