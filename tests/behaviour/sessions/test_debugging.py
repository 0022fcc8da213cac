"""Debuggers in isolated tests: on the user's terminal, as in plain pytest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import HOSTS, Host
from helpers.project import ROOT
from helpers.terminals import CTRL_C, FAILS, LOOPS, PDB, dialogue, lines, same_talk

if TYPE_CHECKING:
    from helpers.run import Run
    from helpers.terminals import Dialogue

pytestmark = pytest.mark.needs("sandbox")


def test_post_mortem(run_as_each: Run) -> None:
    """--pdb stops inside the failed test, before its teardown; the next test goes on."""
    run_as_each.tests(FAILS)
    result = same_talk(run_as_each, lines("value", "resource", "c"), "--pdb")
    assert result.verdicts == {"test_fails": "failed", "test_next": "passed"}
    assert "41" in result.out
    assert result.out.index("'open'") < result.out.index("continue")


def test_it_runs_in_the_sandbox(run: Run) -> None:
    """What is typed is done in the process of the test."""
    run.tests(FAILS)
    with dialogue(run, "--pdb", "--ns-isolate") as there:
        there.answer(PDB, "import os, socket")
        there.answer(PDB, "(os.getpid(), os.getppid(), socket.gethostname())")
        assert "(2, 0, 'isolated')" in there.answer(PDB, "c")
        assert there.end().ret == 1


def test_the_transcript_of_the_docs(run: Run) -> None:
    """It is what a user sees."""
    document = ROOT / "docs" / "debugging.md"
    text = document.read_text("utf-8").partition("```console\n")[2].partition("```")[0]
    command, _, transcript = text.partition("\n")
    typed = re.findall(r"^\(Pdb\) (.*)", transcript, re.MULTILINE)
    run.write("test_it.py", "def test_answer():\n    value = 41\n    assert value == 42\n")
    with dialogue(run, *command.split()[2:], env={"COLUMNS": "80"}) as there:
        lines(*typed)(there)
        assert transcript in there.end().out.replace(f"{run.path}/", "")


@pytest.mark.parametrize("where", ["setup", "call", "teardown"])
def test_post_mortem_of_each_phase(run: Run, where: str) -> None:
    """The one of setup and call is word for word the plain one."""
    run.tests(f"""
    @pytest.fixture
    def resource():
        phase = "setup"
        assert {where == "setup"} is False
        yield
        phase = "teardown"
        assert {where == "teardown"} is False

    def test_it(resource):
        phase = "call"
        assert {where == "call"} is False

    def test_next():
        pass
    """)
    talk = lines("phase", "c")
    if where != "teardown":
        same_talk(run, talk, "--pdb")
        return
    with dialogue(run, "--pdb", "--ns-isolate") as there:
        there.answer(PDB, "phase")
        assert f"'{where}'" in there.answer(PDB, "c")
        result = there.end()
    assert result.verdicts == {"test_it": "passed+error", "test_next": "passed"}
    assert "= ERRORS =" not in result.out, "it has been shown"


@pytest.mark.parametrize(
    "source",
    [FAILS, FAILS.replace("assert value == 42", "breakpoint(); value += 1")],
    ids=["post-mortem", "breakpoint"],
)
def test_quit(run_as_each: Run, source: str) -> None:
    """q ends the session as it does plainly; fixtures are torn down."""
    run_as_each.tests(source)
    result = same_talk(run_as_each, lines("q"), "--pdb")
    assert result.ret == 2
    assert "Exit: Quitting debugger" in result.out
    assert "test_next" not in result.verdicts


def test_trace(run: Run) -> None:
    """--trace stops at the first line of every test."""
    run.tests(FAILS)
    result = same_talk(run, lines("n", "value", "c", "c"), "--trace")
    assert result.verdicts == {"test_fails": "failed", "test_next": "passed"}


@pytest.mark.parametrize(
    "call",
    ["breakpoint()", "pytest.set_trace(header='here')", "__import__('pdb').set_trace()"],
)
@pytest.mark.parametrize("args", [(), ("-s",), ("--capture=sys",)], ids="".join)
def test_breakpoint(run: Run, call: str, args: tuple[str, ...]) -> None:
    """Each way to stop in a test stops at the line after, and can be gone on from."""
    run.tests(f"""
    def test_it():
        value = 1
        print("before")
        {call}
        value += 1
        print("after")
        {call}
        assert value == 2
    """)
    same_talk(run, lines("value", "n", "value", "c", "value", "c"), *args).expect(passed=1)


def test_breakpoint_of_no_effect(run: Run) -> None:
    """PYTHONBREAKPOINT=0."""
    run.tests("def test_it():\n        breakpoint()\n")
    with dialogue(run, "--ns-isolate", env={"PYTHONBREAKPOINT": "0"}) as there:
        there.end().expect(passed=1)


DEBUGGER = """
    import pdb, sys

    def talk():
        while True:
            try:
                word = input("what? ")
            except KeyboardInterrupt:
                print("interrupted")
                continue
            if word == "go":
                return
            print("said", sys._getframe(1).f_locals[word])

    class Mine(pdb.Pdb):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.prompt = "(mine) "
"""


def test_breakpoint_of_another_debugger(run: Run) -> None:
    """PYTHONBREAKPOINT names one that pytest does not know: Ctrl-C is for it, time does not run."""
    run.write("mydebugger.py", DEBUGGER)
    run.tests("""
    @pytest.mark.isolated(timeout=5)
    def test_it():
        value = "this"
        breakpoint()
        time.sleep(5.5)
    """)
    with dialogue(run, "-s", env={"PYTHONBREAKPOINT": "mydebugger.talk"}) as there:
        there.answer("what? ", "value")
        there.expect("said this")
        there.expect("what? ")
        there.interrupt("interrupted")
        there.answer("what? ", "go")
        there.end().expect(passed=1)


def test_class_of_a_debugger(run: Run) -> None:
    """--pdbcls."""
    run.write("mydebugger.py", DEBUGGER)
    run.tests(FAILS)

    def talk(there: Dialogue) -> None:
        there.answer("(mine) ", "value")
        there.answer("(mine) ", "c")

    same_talk(run, talk, "--pdb", "--pdbcls=mydebugger:Mine")


@pytest.mark.parametrize(
    ("module", "name", "prompt"),
    [
        ("IPython", "IPython.terminal.debugger:Pdb", "ipdb> "),
        ("pdbpp", "pdb:Pdb", "(Pdb++) "),
    ],
)
def test_installed_debuggers(run: Run, module: str, name: str, prompt: str) -> None:
    """Those of IPython (as ipdb has it) and pdb++, where they are installed."""
    pytest.importorskip(module)
    run.tests(FAILS)
    with dialogue(run, "--pdb", f"--pdbcls={name}", "--ns-isolate") as there:
        there.answer(prompt, "p 'value', value")
        there.expect("('value', 41)")
        there.answer(prompt, "c")
        assert there.end().ret == 1


# one at a time


def test_jobs_with_pdb(run: Run) -> None:
    """With --pdb and --trace one test runs at a time, and the header says so."""
    run.tests("""
    @pytest.mark.parametrize("n", range(3))
    def test_it(n):
        folder = os.environ["NS_ALONE"]
        os.mkdir(folder)
        os.rmdir(folder)
        assert n != 1
    """)
    env = {"NS_ALONE": str(run.path / "alone")}
    for option in ("--pdb", "--trace"):
        with dialogue(run, "--ns-isolate", option, "--ns-jobs=2", env=env) as there:
            there.expect(
                f"nsisolate: {option} runs one test at a time: --ns-jobs is 1 instead of 2"
            )
            for _ in range({"--pdb": 1, "--trace": 3}[option]):
                there.answer(PDB, "c")
            result = there.end()
        assert list(result.verdicts.values()) == ["passed", "failed", "passed"]


def test_breakpoints_of_tests_that_run_at_once(run: Run) -> None:
    """The terminal goes from one to the next in order, each with what was reported before it."""
    run.tests("""
    @pytest.mark.parametrize("n", range(4))
    def test_it(n):
        path = os.environ["NS_SEEN"]
        open(path + str(n), "w").close()
        # Two run at once: the first to stop is not the first in order.
        while n == 0 and not os.path.exists(path + "1"):
            time.sleep(0.01)
        number = n * 11
        breakpoint()
        number += 1
    """)
    env = {"NS_SEEN": str(run.path / "seen")}
    with dialogue(run, "--ns-isolate", "--ns-jobs=2", env=env) as there:
        for n in range(4):
            before = there.answer(PDB, "number")
            assert before.count("PDB set_trace") == 1
            assert before.count(".\r\n") == (n > 0), "the report of the one before"
            assert f"\n{n * 11}\r\n" in there.answer(PDB, "c")
        there.end().expect(passed=4)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_breakpoints_of_a_group(run: Run, jobs: str) -> None:
    """In tests that share a process, some of which are debugged."""
    run.tests("""
    @pytest.mark.isolated(scope="module")
    @pytest.mark.parametrize("n", range(5))
    def test_it(n):
        if n in (1, 2, 4):
            breakpoint()
        assert n != 2
    """)
    same_talk(run, lines("n", "c", "n", "c", "n", "c"), more=(f"--ns-jobs={jobs}",))


@pytest.mark.parametrize("args", [(), ("--pdb",)], ids="".join)
def test_breakpoint_in_a_snapshot(run: Run, args: tuple[str, ...]) -> None:
    """In the setup and the teardown of a fixture that is set up once for forks."""
    run.tests("""
    @pytest.fixture(scope="module")
    def shared():
        state = "coming"
        breakpoint()
        yield 5
        state = "going"
        breakpoint()
        state = "gone"

    @pytest.mark.isolated(snapshot="module")
    @pytest.mark.parametrize("n", range(2))
    def test_it(shared, n):
        if n == 1:
            breakpoint()
        assert shared == 5
    """)
    with dialogue(run, *args, "--ns-jobs=2") as there:
        there.answer(PDB, "state")
        assert "'coming'" in there.answer(PDB, "c")
        there.answer(PDB, "'number', n")
        assert "('number', 1)" in there.answer(PDB, "c")
        there.answer(PDB, "state")
        assert "'going'" in there.answer(PDB, "c")
        there.end().expect(passed=2)


def test_quit_with_a_snapshot(run: Run) -> None:
    """What it has set up is torn down, with a debugger if it comes to one."""
    run.tests("""
    @pytest.fixture(scope="module")
    def shared():
        yield 5
        state = "going"
        breakpoint()
        state = "gone"

    @pytest.mark.isolated(snapshot="module")
    @pytest.mark.parametrize("n", range(2))
    def test_it(shared, n):
        breakpoint()
        assert shared == 5
    """)
    with dialogue(run) as there:
        there.answer(PDB, "q")
        there.answer(PDB, "state")
        assert "'going'" in there.answer(PDB, "c")
        result = there.end()
    assert result.ret == 2
    assert "Exit: Quitting debugger" in result.out


# time


SLOW = """
    @pytest.mark.parametrize("n", range(2))
    def test_debugged(n):
        began = time.monotonic()
        breakpoint()
        while time.monotonic() < began + 4:
            time.sleep(0.1)
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_no_time_runs_in_a_debugger(run: Run, jobs: str) -> None:
    """timeout= ends no test that is debugged, or waits for that, and still ends the next one."""
    run.tests(
        "pytestmark = pytest.mark.isolated(timeout=3)",
        SLOW,
        """
        @pytest.mark.isolated(timeout=1)
        def test_endless():
            while True:
                time.sleep(0.1)
        """,
    )
    with dialogue(run, f"--ns-jobs={jobs}") as there:
        lines("c", "c")(there)
        result = there.end()
    assert list(result.verdicts.values()) == ["passed", "passed", "failed"]
    assert "TIMED OUT after 1 s" in result.out


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_pytest_timeout(run: Run, jobs: str) -> None:
    """Its timer in the test process heeds the debugger as well, and the wait for the terminal."""
    pytest.importorskip("pytest_timeout")
    run.plugins += ("timeout",)
    run.tests(SLOW)
    with dialogue(run, "--ns-isolate", "--timeout=3", f"--ns-jobs={jobs}") as there:
        lines("c", "c")(there)
        there.end().expect(passed=2)


# elsewhere


@pytest.mark.parametrize("host", HOSTS[:1], ids=lambda host: host.name)
def test_without_namespaces(run_as_each: Run, host: Host) -> None:
    """In a forked process (--ns-missing fork) it is the same."""
    run_as_each.tests(LOOPS + "\n    def test_fails():\n        assert 1 == 2\n")
    args = ("-s", "--pdb", "--ns-isolate", "--ns-missing=fork")
    with dialogue(run_as_each, *args, prefix=host.prefix) as there:
        there.expect("WITHOUT NAMESPACES")
        there.answer(PDB, "c")
        there.expect("it loops\r\n")
        there.type(CTRL_C)
        there.answer(PDB, "found = 1")
        there.answer(PDB, "c")
        there.answer(PDB, "c")
        result = there.end()
    assert list(result.verdicts.values()) == ["passed", "passed", "failed"]


def test_xdist(run: Run) -> None:
    """--pdb is refused by xdist; a breakpoint in a worker ends as it does plainly."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests("def test_it():\n        breakpoint()\n")
    refused = run("-n1", "--pdb", "--ns-isolate")
    assert refused.ret == 4
    assert "--pdb is incompatible with distributing tests" in refused.err
    plain, isolated = run("-n1"), run.isolated("-n1")
    assert isolated.ret == plain.ret != 0
    assert isolated.verdicts == plain.verdicts
