"""However a test ends, it is one clear failed test, and its neighbours don't notice."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import pytest

from helpers.hosts import DEADLINE

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

PRELUDE = """
import ctypes, os, signal, socket, subprocess, sys, time
import pytest
from ns_safe import contained

class ReprRaises(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")
    __str__ = __repr__

class NoJson:
    def __repr__(self):
        return "a value JSON can't take"

def detached(action):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            action()
        os._exit(0)
    os.wait()

def garbage():
    for fd in range(3, 1024):
        try:
            os.set_blocking(fd, False)
            os.write(fd, b"\\xff\\x00garbage" * 1000)
        except OSError:
            pass
"""


class Ending(NamedTuple):
    """A hostile test, and what must be said about it."""

    name: str
    body: str
    says: tuple[str, ...] = ()
    timeout: float | None = None


SIGKILL, SIGTERM = "CRASHED with signal 9 (SIGKILL)", "CRASHED with signal 15 (SIGTERM)"
TIMED_OUT = "TIMED OUT after 1 s"
ENDINGS = [
    Ending("kills-itself", "os.kill(os.getpid(), signal.SIGKILL)", (SIGKILL,)),
    Ending("terminates-itself", "os.kill(os.getpid(), signal.SIGTERM)", (SIGTERM,)),
    Ending("aborts", "os.abort()", ("CRASHED with signal 6 (SIGABRT)", "Fatal Python error")),
    Ending(
        "segfaults",
        "ctypes.string_at(0)",
        ("CRASHED with signal 11 (SIGSEGV)", "Fatal Python error: Segmentation fault", "test_bad"),
    ),
    Ending("exits-0", "os._exit(0)", ("EXITED with code 0 before reporting",)),
    Ending("exits-3", "os._exit(3)", ("EXITED with code 3 before reporting",)),
    Ending("sys-exit", "sys.exit('bye')", ("SystemExit: bye",)),
    Ending("execs", 'os.execv("/bin/true", ["true"])', ("EXITED with code 0 before reporting",)),
    Ending("closes-all", "os.closerange(0, 65536); assert False, 'closed'"),
    Ending("stops-itself", "os.kill(os.getpid(), signal.SIGSTOP)", ("SIGSTOP",)),
    Ending("stops-itself-with-timeout", "os.kill(os.getpid(), signal.SIGSTOP)", (), 1),
    Ending(
        "kills-everyone",
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "os.kill(-1, 9)\n"
        "assert child.wait() == 0, 'child killed'",
        ("child killed",),
    ),
    Ending(
        "kills-init",
        "os.kill(1, signal.SIGKILL); assert False, 'init lives'",
        ("init lives",),
    ),
    Ending(
        "endless-loop-in-c",
        "import itertools\nsum(itertools.repeat(0))  # looks at no signal and keeps the GIL",
        (TIMED_OUT, "test_bad"),
        1,
    ),
    Ending("endless-loop", "while True: pass", (TIMED_OUT, "test_bad"), 1),
    Ending(
        "ignores-signals",
        "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        (TIMED_OUT,),
        1,
    ),
    Ending(
        "fork-bomb",
        "while True:\n"
        "    if os.fork() > 400 or os.getpid() > 400: signal.pause()  # pids are the sandbox's own",
        (TIMED_OUT,),
        1,
    ),
    Ending(
        "daemon-holds-descriptors",
        "detached(lambda: time.sleep(1000)); assert False, 'after the daemon'",
        ("after the daemon",),
    ),
    Ending("writes-garbage", "garbage(); os._exit(1)"),
    Ending(
        "grandchild-writes-garbage",
        "reader, writer = os.pipe(); detached(garbage); os.close(writer)\n"
        "while os.read(reader, 65536): pass\n"
        "assert False, 'after the garbage'",
    ),
    Ending("huge-report", "pytest.fail('x' * 300_000_000)"),
    Ending(
        "strange-property",
        "record_property('strange', NoJson()); assert False, 'after the property'",
        ("after the property",),
    ),
    Ending(
        "unmounts-proc",
        "ctypes.CDLL(None).umount2(b'/proc', 2); assert False, 'unmounted'",
        ("unmounted",),
    ),
    Ending("repr-raises", "raise ReprRaises()", ("ReprRaises",)),
    Ending(
        "crashes-in-a-thread",
        "import threading\nthread = threading.Thread(target=ctypes.string_at, args=[0])\n"
        "thread.start(); thread.join()",
        ("CRASHED with signal 11 (SIGSEGV)", "Segmentation fault"),
    ),
]


def bad_test(ending: Ending, name: str = "test_bad") -> str:
    """The source of the hostile test, which does nothing unless it is in a sandbox."""
    mark = f"@pytest.mark.isolated(timeout={ending.timeout:g})\n" if ending.timeout else ""
    body = textwrap.indent(f"contained()\nprint('said before the end')\n{ending.body}", "    ")
    return f"{mark}def {name}(record_property):\n{body}\n"


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
def test_alone(run: Run, ending: Ending) -> None:
    """One failed test that says what happened and shows what was printed before."""
    run.write("test_it.py", PRELUDE + bad_test(ending))
    result = run.isolated()
    assert result.verdicts == {"test_bad": "failed"}, str(result)
    assert result.ret == 1
    assert "INTERNALERROR" not in result.out + result.err
    call = result.of("test_bad")
    for text in ending.says:
        assert text in call.everything, call.everything[:10_000]
    if any(word in "".join(ending.says) for word in ("CRASHED", "EXITED", "TIMED OUT")):
        assert call.text.startswith(ending.says[0]), call.text
        assert "said before the end" in call.section("stdout")


@pytest.mark.kernel
@pytest.mark.parametrize("jobs", [1, 4])
def test_amid_good_tests(run_as_each: Run, jobs: int) -> None:
    """Twenty neighbours of each pass, in collection order, whatever those between them do."""
    good = "@pytest.mark.parametrize('n', range(10))\ndef test_good_{}(n):\n    pass\n"
    source, expected = (
        [PRELUDE, good.format(0)],
        [(f"test_good_0[{n}]", "passed") for n in range(10)],
    )
    for number, ending in enumerate(ENDINGS, 1):
        name = f"test_{ending.name.replace('-', '_')}"
        source += [bad_test(ending, name), good.format(number)]
        expected.append((name, "failed"))
        expected += [(f"test_good_{number}[{n}]", "passed") for n in range(10)]
    run_as_each.write("test_it.py", "".join(source))
    result = run_as_each.isolated(f"--ns-jobs={jobs}", timeout=2 * DEADLINE)
    verdicts = dict(result.verdicts)
    if verdicts["test_fork_bomb"] == "failed+error":
        # On a slow machine its processes leave it no time to tear down, and it is killed.
        assert "the process did not react when it was asked to end" in result.out
        verdicts["test_fork_bomb"] = "failed"
    assert list(verdicts.items()) == expected, str(result)
    assert result.ret == 1
    assert "INTERNALERROR" not in result.out + result.err


def test_thread_stacks_at_a_timeout(run: Run) -> None:
    """A timeout shows where every thread was."""
    run.tests("""
    import threading

    def waits_in_thread(event):
        event.wait()

    @pytest.mark.isolated(timeout=1)
    def test_bad():
        threading.Thread(target=waits_in_thread, args=[threading.Event()], daemon=True).start()
        waits_in_main()

    def waits_in_main():
        threading.Event().wait()
    """)
    result = run()
    result.expect(failed=1)
    text = result.of("test_bad").everything
    assert "waits_in_thread" in text
    assert "waits_in_main" in text


@pytest.mark.parametrize("where", ["option", "ini"])
def test_timeout_of_a_fraction(run: Run, where: str) -> None:
    """A timeout may be a fraction, and covers set-up and tear-down too."""
    run.tests("""
    @pytest.fixture
    def slow():
        time.sleep(1000)

    def test_bad(slow):
        pass
    """)
    if where == "ini":
        run.write("pytest.ini", "[pytest]\nnsisolate_timeout = 0.5\n")
    else:
        source = (run.path / "test_it.py").read_text()
        mark = "pytestmark = pytest.mark.isolated(timeout=0.5)\n"
        run.write("test_it.py", source + mark)
    result = run.isolated()
    result.expect(error=1)
    assert "TIMED OUT after 0.5 s" in result.of("test_bad", "setup").text


def test_ten_thousand_warnings(run: Run) -> None:
    """All of them arrive, as without the plugin."""
    run.tests("""
    def test_warns():
        for number in range(10_000):
            warnings.warn(f"warning {number}")
    """)
    plain, isolated = run(), run.isolated()
    isolated.expect(passed=1)
    assert len(isolated.warnings) == 10_000
    assert isolated.warnings == plain.warnings


def test_exception_without_repr(run: Run) -> None:
    """The report of an exception whose repr raises is the one of plain pytest."""
    run.write("test_it.py", PRELUDE + "def test_bad():\n    raise ReprRaises('x')\n")
    plain, isolated = run(), run.isolated()
    isolated.expect(failed=1)
    assert isolated.of("test_bad").text == plain.of("test_bad").text


def test_strange_property(run: Run) -> None:
    """A value that JSON can't take arrives as its repr, and its neighbours as they are."""
    run.write(
        "test_it.py",
        PRELUDE
        + "def test_it(record_property):\n"
        + "    record_property('strange', NoJson())\n    record_property('plain', [1])\n",
    )
    result = run.isolated()
    result.expect(passed=1)
    assert result.value("test_it", "strange") == "a value JSON can't take"
    assert result.value("test_it", "plain") == [1]


def test_expected_crash(run: Run) -> None:
    """xfail covers a crash, with strict too; raises= names an exception that it isn't."""
    run.tests("""
    @pytest.mark.xfail
    def test_crash():
        ctypes.string_at(0)

    @pytest.mark.xfail(reason="known", strict=True)
    def test_strict():
        ctypes.string_at(0)
    """)
    result = run.isolated()
    result.expect(xfailed=2)
    assert "known" in (result.of("test_strict").xfail or "")


def test_crash_while_setting_up(run: Run) -> None:
    """A crash in a fixture is an error of the set-up, named so."""
    run.tests("""
    @pytest.fixture
    def broken():
        print("said before the end")
        ctypes.string_at(0)

    def test_bad(broken):
        pass
    """)
    result = run.isolated()
    result.expect(error=1)
    setup = result.of("test_bad", "setup")
    assert setup.text.startswith("CRASHED with signal 11 (SIGSEGV)")
    assert "said before the end" in setup.section("stdout")
    assert "broken" in setup.everything


def test_crash_while_tearing_down(run: Run) -> None:
    """A crash in a finaliser leaves the call passed and adds an error of the teardown."""
    run.tests("""
    @pytest.fixture
    def broken():
        yield
        os.kill(os.getpid(), signal.SIGKILL)

    def test_bad(broken):
        print("said in the call")
    """)
    result = run.isolated()
    assert result.verdicts == {"test_bad": "passed+error"}, str(result)
    assert result.ret == 1
    assert "said in the call" in result.of("test_bad").section("stdout")
    assert result.of("test_bad", "teardown").text.startswith(SIGKILL)


def test_failure_then_crash_while_tearing_down(run: Run) -> None:
    """A call that failed before the crash stays as it was reported."""
    run.tests("""
    @pytest.fixture
    def broken():
        yield
        os._exit(3)

    def test_bad(broken):
        assert 1 == 2, "the reason"
    """)
    result = run.isolated()
    assert result.verdicts == {"test_bad": "failed+error"}, str(result)
    assert "the reason" in result.of("test_bad").text
    text = result.of("test_bad", "teardown").text
    assert text.startswith("EXITED with code 3 before reporting")


def test_leaked_processes_are_named(run_as_each: Run) -> None:
    """What a test left running is killed and named, and the test keeps its outcome."""
    run_as_each.tests("""
    import multiprocessing

    def test_leaks():
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["sleep", "1001"], start_new_session=True)

    def test_fails():
        subprocess.Popen(["sleep", "1002"])
        assert False

    def test_clean():
        subprocess.run(["true"], check=True)
        # Starts a helper of Python's own, which is to run until the process ends.
        multiprocessing.get_context("spawn").Lock()
    """)
    result = run_as_each.isolated("-rA")
    assert result.verdicts == {
        "test_leaks": "passed",
        "test_fails": "failed",
        "test_clean": "passed",
    }
    reports = {name: result.of(name, "teardown").everything for name in result.verdicts}
    assert "left running: sleep 1000 (pid " in reports["test_leaks"]
    assert "left running: sleep 1001 (pid " in reports["test_leaks"]
    assert "left running: sleep 1002 (pid " in reports["test_fails"]
    assert "left running" not in reports["test_clean"]
    assert "left running: sleep 1002 (pid " in result.out


def test_outcome_is_recorded(run: Run) -> None:
    """With --ns-properties, user properties say how each test process ended."""
    run.tests("""
    def test_good():
        pass

    def test_crash():
        ctypes.string_at(0)

    @pytest.mark.isolated(timeout=1)
    def test_slow():
        time.sleep(1000)
    """)
    result = run.isolated("--ns-properties")
    assert result.verdicts == {"test_good": "passed", "test_crash": "failed", "test_slow": "failed"}
    outcomes = {name: str(result.value(name, "ns_outcome")) for name in result.verdicts}
    assert outcomes["test_good"] == "completed"
    assert "crashed" in outcomes["test_crash"]
    assert "timed out" in outcomes["test_slow"]
    for name in result.verdicts:
        assert result.value(name, "ns_wall") > 0
        assert result.value(name, "ns_cpu") >= 0
