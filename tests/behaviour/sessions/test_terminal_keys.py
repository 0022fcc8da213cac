"""The terminal's keys and standard input reach isolated tests as they reach plain ones."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import DEADLINE
from helpers.terminals import CTRL_A, CTRL_C, CTRL_Z, FAILS, LOOPS, PDB, dialogue, lines, same_talk

if TYPE_CHECKING:
    from helpers.run import Run
    from helpers.terminals import Dialogue

pytestmark = pytest.mark.needs("sandbox")


def test_ctrl_c_in_a_debugged_loop(run_as_each: Run) -> None:
    """Ctrl-C stops the debugged code, and the debugger is there again."""
    run_as_each.tests(LOOPS)

    def talk(there: Dialogue) -> None:
        there.answer(PDB, "c")
        there.expect("it loops\r\n")
        there.type(CTRL_C)
        there.answer(PDB, "found = 1")
        there.answer(PDB, "c")

    same_talk(run_as_each, talk, "-s").expect(passed=2)


def test_ctrl_c_with_pdb(run: Run) -> None:
    """Under --pdb, Ctrl-C in a test that has no debugger yet starts one; the session goes on."""
    run.tests(LOOPS.replace("breakpoint()", "pass"))

    def talk(there: Dialogue) -> None:
        there.expect("it loops\r\n")
        there.type(CTRL_C)
        there.answer(PDB, "found")
        there.answer(PDB, "c")

    result = same_talk(run, talk, "-s", "--pdb")
    assert result.verdicts == {"test_loops": "failed", "test_next": "passed"}


def test_ctrl_c_at_the_prompt(run: Run) -> None:
    """It is an answer to the debugger, and ends nothing; after the debugger it does."""
    run.tests(LOOPS.replace("while not found", "while True"))

    def talk(there: Dialogue) -> None:
        there.expect(PDB)
        there.interrupt(PDB)
        there.type("found\n")
        there.answer(PDB, "c")
        there.expect("it loops\r\n")
        there.type(CTRL_C)
        there.answer(PDB, "raise KeyboardInterrupt")
        there.answer(PDB, "q")

    assert same_talk(run, talk, "-s").ret == 2


def test_ctrl_c_in_a_snapshot(run: Run) -> None:
    """It is for whoever has the terminal: the snapshot while it sets up, then each of its forks."""
    run.tests("""
    def loop():
        found, said = 0, []
        breakpoint()
        while not found: said or said.append(os.write(1, b"it loops\\n")); time.sleep(0.01)

    @pytest.fixture(scope="module")
    def shared():
        loop()

    @pytest.mark.isolated(snapshot="module")
    @pytest.mark.parametrize("n", range(2))
    def test_it(shared, n):
        loop()
    """)
    with dialogue(run, "-s") as there:
        for _ in range(3):
            there.answer(PDB, "c")
            there.expect("it loops\r\n")
            there.type(CTRL_C)
            there.answer(PDB, "found = 1")
            there.answer(PDB, "c")
        there.end().expect(passed=2)


def test_line_editing(run: Run) -> None:
    """As readline does it: what is typed at the beginning of the line stands there."""
    pytest.importorskip("readline")
    run.tests(FAILS)
    same_talk(run, lines(f"'told'{CTRL_A}value, ", "c"), "--pdb")


def test_ctrl_z(run: Run) -> None:
    """It stops the test with pytest: the shell has the terminal, until it lets them go on."""
    run.tests(LOOPS)
    with dialogue(run, "-s", "--ns-isolate", job_control=True) as there:
        there.answer(PDB, "c")
        there.expect("it loops\r\n")
        there.type(CTRL_Z)
        there.expect("stopped")
        there.type("fg\n")
        there.expect("[shell read fg]")
        there.type(CTRL_C)
        there.answer(PDB, "found = 1")
        there.answer(PDB, "c")
        there.end().expect(passed=2)


def test_killed_in_the_debugger(run: Run) -> None:
    """The terminal is as it was before, and the test has failed."""
    run.tests(FAILS)
    with dialogue(run, "--pdb", "--ns-isolate") as there:
        modes = termios.tcgetattr(there.slave)
        there.answer(PDB, "import os; os.kill(os.getpid(), 9)")
        there.expect("1 passed")
        # The keeper of the terminal, the runner, may be about to end.
        assert termios.tcgetattr(there.slave) == modes
        result = there.end()
    assert "CRASHED with signal 9" in result.out
    assert result.verdicts == {"test_fails": "failed+error", "test_next": "passed"}


def test_ctrl_c_while_a_test_reads(run: Run) -> None:
    """Without a debugger Ctrl-C ends the session, and leaves the terminal as it was."""
    run.tests("def test_it():\n        input('name? ')\n")
    with dialogue(run, "-s", "--ns-isolate") as there:
        modes = termios.tcgetattr(there.slave)
        there.expect("name? ")
        there.interrupt("no tests ran")
        assert termios.tcgetattr(there.slave) == modes
        assert there.end().ret == 2


# input


def test_input(run_as_each: Run) -> None:
    """With -s a test reads what the user types."""
    run_as_each.tests("""
    def test_one():
        print("hello", input("name? "))

    def test_two():
        assert input("and yours? ") == "eve"
    """)

    def talk(there: Dialogue) -> None:
        there.answer("name? ", "adam")
        there.answer("yours? ", "eve")

    same_talk(run_as_each, talk, "-s").expect(passed=2)


def test_input_without_s(run: Run) -> None:
    """Without -s reading is the error that pytest makes of it."""
    run.tests("def test_one():\n        input('name? ')\n")
    result = same_talk(run, lambda there: None)
    assert "reading from stdin while output is captured" in result.out


@pytest.mark.parametrize("args", [("-s",), ("-s", "--ns-isolate")], ids=["plain", "isolated"])
def test_input_from_a_pipe(run: Run, args: tuple[str, ...]) -> None:
    """Each test reads its lines, and leaves those of the next."""
    run.tests("""
    def test_one():
        assert input() == "first"
        assert sys.stdin.readline() == "sécond\\n"

    def test_two():
        assert list(sys.stdin) == ["third\\n", "fourth"]
    """)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    done = subprocess.run(
        command,
        cwd=run.path,
        input="first\nsécond\nthird\nfourth",
        encoding="utf-8",
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("args", [(), ("--ns-isolate",)], ids=["plain", "isolated"])
def test_commands_from_a_pipe(run: Run, args: tuple[str, ...]) -> None:
    """A debugger of each test takes its commands out of a pipe."""
    run.tests(FAILS.replace("def test_next():\n        pass", "def test_more(): assert not 'x'"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pdb", *args],
        cwd=run.path,
        input="value\nc\n'one more'\nc\n",
        encoding="utf-8",
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "(Pdb) 41\n" in done.stdout, done.stdout
    assert "(Pdb) 'one more'\n" in done.stdout
    assert "2 failed" in done.stdout
