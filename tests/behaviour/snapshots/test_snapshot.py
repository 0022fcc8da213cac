"""Fixtures set up once, each test a fork of there: the key ``snapshot``."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import HOSTS
from helpers.run import same
from helpers.samples import MIXED

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

MODULE = "pytestmark = pytest.mark.isolated(snapshot='module')"
LOG = """
    import os
    LOG = os.path.abspath("log.txt")

    def say(word):
        with open(LOG, "a") as log:
            log.write(word + " ")
"""
DIRTY = """
    import random

    SIGNAL = signal.SIGUSR1

    @pytest.fixture(scope="module")
    def made(tmp_path_factory):
        say("up")
        for top in ("/tmp", "/var/tmp", "/dev/shm"):
            with open(f"{top}/made", "w") as made:
                made.write("as made")
        folder = tmp_path_factory.mktemp("made")
        (folder / "file").write_text("as made")
        os.environ["MADE"] = "as made"
        signal.signal(SIGNAL, handler)
        sys.modules["made_up"] = type(sys)("made_up")
        os.chdir(folder)
        stream = open("/tmp/open", "w+")
        stream.write("as made")
        stream.flush()
        removed = open("/tmp/removed", "w+")
        removed.write("as made")
        removed.flush()
        os.unlink("/tmp/removed")
        yield {"memory": ["as made"], "folder": folder, "open": stream, "removed": removed}
        assert os.path.exists("/tmp/made")
        subprocess.run(["true"], check=True)
        say("down")

    def handler(*_):
        pass

    def other_handler(*_):
        pass

    @pytest.mark.parametrize("n", range(8))
    def test_dirt(made, n, tmp_path):
        # as the fixture left it
        assert made["memory"] == ["as made"]
        folder = made["folder"]
        paths = ["/tmp/made", "/var/tmp/made", "/dev/shm/made", str(folder / "file")]
        for path in paths:
            assert open(path).read() == "as made", path
            assert sorted(os.listdir(os.path.dirname(path))).count("new") == 0
        assert os.environ["MADE"] == "as made" and "NEW" not in os.environ
        assert os.getcwd() == str(folder)
        assert signal.getsignal(SIGNAL) is handler
        assert sys.modules["made_up"].__dict__.get("dirt") is None
        assert "dirt_made_up" not in sys.modules
        for name in ("open", "removed"):
            stream = made[name]
            assert stream.tell() == 7
            stream.seek(0)
            assert stream.read() == "as made"
        assert random.random() == random.Random(11).random()
        # and dirt on all of it
        made["memory"].append(n)
        os.unlink(paths[n % 4])
        for path in paths:
            with open(path, "w") as stream:
                stream.write(f"dirt of {n}")
            with open(os.path.join(os.path.dirname(path), "new"), "x") as stream:
                stream.write("dirt")
        os.environ["MADE"] = "dirt"
        os.environ["NEW"] = "dirt"
        os.chdir("/")
        signal.signal(SIGNAL, other_handler)
        sys.modules["made_up"].dirt = n
        sys.modules["dirt_made_up"] = sys
        for name in ("open", "removed"):
            made[name].write("dirt")
            made[name].flush()
        (tmp_path / "x").write_text("x")

    @pytest.fixture(scope="module", autouse=True)
    def seeded(made):
        random.seed(11)
"""
SHUFFLE = """
    import os, random

    def pytest_collection_modifyitems(items):
        random.Random(int(os.environ["NS_ORDER"])).shuffle(items)
"""


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_no_test_sees_the_dirt_of_another(run_as_each: Run, jobs: int) -> None:
    """Memory, files, environment, directory, handlers and modules are as the fixtures left them."""
    run = run_as_each
    run.tests(MODULE, LOG, DIRTY)
    run.write("conftest.py", SHUFFLE)
    for order in range(3):
        env = {"NS_ORDER": str(random.randrange(1000) if order else 0)}
        run(f"--ns-jobs={jobs}", env=env).expect(passed=8)
        log = run.path / "log.txt"
        assert log.read_text("utf-8") == "up down ", "set up once, torn down once"
        log.unlink()


@pytest.mark.parametrize("scope", ["class", "module", "session"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_reports_are_those_of_plain_pytest(run: Run, scope: str, jobs: int) -> None:
    """Outcomes, sections, warnings, subtests and exit code."""
    run.tests(MIXED)
    run.write("test_more.py", (run.path / "test_it.py").read_text("utf-8"))
    run.write("pytest.ini", f"[pytest]\nnsisolate_snapshot = {scope}\n")
    same(run, jobs=(jobs,))


KINDS = """
    @pytest.fixture(scope="session", params=["s1", "s2"])
    def session_wide(request):
        say(f"+{request.param}")
        yield request.param
        say(f"-{request.param}")

    @pytest.fixture(scope="module")
    def named():
        return "of the module"

    @pytest.fixture(scope="module", autouse=True)
    def automatic():
        say("+auto")
        yield
        say("-auto")

    @pytest.fixture(scope="module")
    def used():
        say("+used")

    class TestOverriding:
        @pytest.fixture(scope="class")
        def named(self, named):
            say("+named")
            return named + ", and of the class"

        def test_over(self, named):
            assert named == "of the module, and of the class"

        def test_over_again(self, named):
            assert named == "of the module, and of the class"

    def test_named(named):
        assert named == "of the module"

    @pytest.mark.usefixtures("used")
    def test_used():
        pass

    def test_parameter(session_wide, named):
        assert session_wide in ("s1", "s2")

    def test_parameter_too(session_wide):
        assert session_wide in ("s1", "s2")
"""


def test_kinds_of_fixtures(run: Run) -> None:
    """Parametrised, overriding, autouse and usefixtures: each set up once for those who use it."""
    run.tests(MODULE, LOG, KINDS)
    run("--ns-jobs=2").expect(passed=8)
    words = (run.path / "log.txt").read_text("utf-8").split()
    # A group without a parameter, and one for each: each has what its tests ask for.
    assert sorted(words) == sorted(
        "+auto -auto +used +named +named +auto -auto +s1 -s1 +auto -auto +s2 -s2".split()  # noqa: SIM905 -- reads as a log
    )


TREE = """
    import pytest
    from conftest import say

    @pytest.fixture(scope="module")
    def of_module(of_session):
        say("+m")
        open("/tmp/module", "w").write("m")
        yield of_session + ["m"]
        say("-m")

    @pytest.mark.isolated(snapshot="session")
    def test_session(of_session, stream):
        assert stream.tell() == 2
        of_session.append("dirt")
        open("/tmp/session", "w").write("dirt")

    @pytest.mark.isolated(snapshot="module")
    @pytest.mark.parametrize("n", range(3))
    def test_module(of_module, n):
        assert of_module == ["s", "m"]
        of_module.append("dirt")
        assert open("/tmp/session").read() == "s"
        open("/tmp/session", "w").write("dirt")
        assert open("/tmp/module").read() == "m"
        open("/tmp/module", "w").write("dirt")

    @pytest.mark.isolated(snapshot="class")
    class TestClass:
        @pytest.fixture(scope="class")
        def of_class(self, of_module, stream):
            import os
            say("+c")
            open("/tmp/class", "w").write("c")
            os.unlink("/tmp/module")
            stream.write("of c")
            stream.flush()
            yield of_module + ["c"]
            say("-c")

        @pytest.mark.parametrize("n", range(3))
        def test_class(self, of_class, stream, n):
            import os
            assert stream.tell() == 6
            stream.write("dirt")
            stream.flush()
            assert of_class == ["s", "m", "c"]
            of_class.append("dirt")
            assert open("/tmp/class").read() == "c"
            open("/tmp/class", "w").write("dirt")
            assert not os.path.exists("/tmp/module")
            open("/tmp/module", "x").write("dirt")
            assert open("/tmp/session").read() == "s"
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_tree(run_as_each: Run, jobs: int) -> None:
    """A narrower snapshot is a fork of the wider one, with its memory and files."""
    run = run_as_each
    run.write("conftest.py", LOG + """
    import pytest

    @pytest.fixture(scope="session")
    def of_session():
        say("+s")
        open("/tmp/session", "w").write("s")
        yield ["s"]
        say("-s")

    @pytest.fixture(scope="session")
    def stream():
        stream = open("/tmp/stream", "w+")
        stream.write("s;")
        stream.flush()
        return stream
    """)  # fmt: skip
    for name in ("test_a.py", "test_b.py"):
        run.write(name, TREE)
    run(f"--ns-jobs={jobs}").expect(passed=14)
    words = (run.path / "log.txt").read_text("utf-8").split()
    assert sorted(words) == sorted("+s -s +m -m +c -c +m -m +c -c".split())  # noqa: SIM905 -- reads as a log
    assert words[0] == "+s"
    assert words[-1] == "-s", "freed when the last test that needs it is over"


def test_failing_fixtures(run: Run) -> None:
    """Each test that uses it reports the failure, as in pytest; the fixture runs once."""
    run.tests(MODULE, LOG, """
    @pytest.fixture(scope="module")
    def broken():
        say("broken")
        raise LookupError("set-up")

    @pytest.fixture(scope="module")
    def skipping():
        pytest.skip("not today")

    @pytest.fixture(scope="module")
    def breaks_later():
        print("printed at set-up")
        yield
        print("printed at teardown")
        raise LookupError("teardown")

    def test_one(broken): pass
    def test_two(broken): pass
    def test_skips(skipping): pass
    def test_fine(breaks_later): pass
    def test_last(): pass
    """)  # fmt: skip
    result = run()
    assert result.verdicts == {
        "test_one": "error",
        "test_two": "error",
        "test_skips": "skipped",
        "test_fine": "passed",
        "test_last": "passed+error",
    }, str(result)
    for name in ("test_one", "test_two"):
        assert "LookupError: set-up" in result.of(name, "setup").text
    assert "not today" in result.of("test_skips", "setup").text
    assert (run.path / "log.txt").read_text("utf-8") == "broken "
    last = result.of("test_last", "teardown")
    assert "LookupError: teardown" in last.text
    assert "printed at teardown" in last.section("stdout")
    assert "printed at set-up" in result.of("test_one", "setup").section("stdout setup")


UNFIT = {
    "thread": ("threading.Thread(target=event.wait, name='worker-7', daemon=True).start()",
               "the thread 'worker-7'"),
    "server": ("kept.append(socket.create_server(('127.0.0.1', 8123)))",
               "the socket ('127.0.0.1', 8123)"),
    "child": ("kept.append(subprocess.Popen(['sleep', '1005']))", "(sleep 1005)"),
    "pipe": ("kept.append(os.pipe())", "the pipe "),
    "loop": ("kept.append(asyncio.new_event_loop())", "an event loop"),
    "mapping": ("kept.append(mmap.mmap(-1, 4096))", "the shared mapping of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_what_no_fork_can_have(run: Run, kind: str) -> None:
    """It is named at the fixture, for each test that uses it; the other tests run."""
    source, says = UNFIT[kind]
    run.tests(MODULE, f"""
    import asyncio, mmap, threading

    kept, event = [], threading.Event()

    @pytest.fixture(scope="module")
    def plain():
        return 1

    @pytest.fixture(scope="module")
    def unfit(plain):
        {source}
        yield
        event.set()
        while kept:
            one = kept.pop()
            for end in (getattr(one, "kill", None), getattr(one, "close", None)):
                if end is not None:
                    end()

    def test_one(unfit): pass
    def test_two(unfit): pass
    def test_other(plain): assert plain == 1
    """)  # fmt: skip
    result = run()
    verdicts = {"test_one": "error", "test_two": "error", "test_other": "passed"}
    assert result.verdicts == verdicts, str(result)
    for name in ("test_one", "test_two"):
        text = result.of(name, "setup").text
        assert text.startswith("NO SNAPSHOT of the fixture 'unfit' ("), text
        assert f"{run.path}/test_it.py:" in text
        assert says in text
        assert "share=('net',)" in text


def test_a_server_stays_with_the_snapshot(run_as_each: Run) -> None:
    """With share=("net",) its tests reach a thread and a process of the fixture's."""
    run = run_as_each
    run.tests("""
    import threading

    pytestmark = pytest.mark.isolated(snapshot="module", share=("net",))

    PROGRAM = '''
    import socket
    with socket.create_server(("127.0.0.1", 8124)) as server:
        print("up", flush=True)
        while True:
            server.accept()[0].sendall(b"process")
    '''

    @pytest.fixture(scope="module")
    def servers():
        server = socket.create_server(("127.0.0.1", 8123))
        def serve():
            while True:
                server.accept()[0].sendall(b"thread")
        threading.Thread(target=serve, daemon=True).start()
        import textwrap
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            yield
            process.terminate()
            assert process.wait() == -signal.SIGTERM

    @pytest.mark.parametrize("n", range(3))
    def test_reaches(servers, n):
        for port, says in ((8123, b"thread"), (8124, b"process")):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                assert connection.recv(100) == says

    def test_not_the_hosts(record_property):
        record_property("net", os.stat("/proc/self/ns/net").st_ino)
    """)
    result = run().expect(passed=4)
    assert result.value("test_not_the_hosts", "net") != os.stat("/proc/self/ns/net").st_ino


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("ctypes.string_at(0)", "CRASHED with signal 11 (SIGSEGV)"),
        ("os._exit(3)", "EXITED with code 3"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); time.sleep(100)", "TIMED OUT"),
    ],
    ids=["crash", "exit", "deaf"],
)
def test_snapshot_breaks(run: Run, how: str, says: str) -> None:
    """Each of its tests says so; the others run."""
    run.tests("pytestmark = pytest.mark.isolated(snapshot='module', timeout=2)", f"""
    @pytest.fixture(scope="module")
    def broken():
        {how}

    def test_one(broken): pass
    def test_two(broken): pass

    @pytest.mark.isolated(snapshot=None)
    def test_other(): pass
    """)  # fmt: skip
    result = run()
    verdicts = {"test_one": "error", "test_two": "error", "test_other": "passed"}
    assert result.verdicts == verdicts, str(result)
    for name in ("test_one", "test_two"):
        text = result.of(name, "setup").text
        assert text.startswith(says), text
        assert "the process of its snapshot (snapshot='module')" in text


def test_fixture_out_of_time(run: Run) -> None:
    """It fails where it hangs, for all of its tests."""
    run.tests("pytestmark = pytest.mark.isolated(snapshot='module', timeout=1)", """
    @pytest.fixture(scope="module")
    def endless():
        while True:
            time.sleep(0.01)

    def test_one(endless): pass
    def test_two(endless): pass
    def test_other(): pass
    """)  # fmt: skip
    result = run().expect(error=2, passed=1)
    for name in ("test_one", "test_two"):
        assert "TIMED OUT after 1 s" in result.of(name, "setup").text


def test_test_out_of_time(run: Run) -> None:
    """Its processes are named; the next test begins from the snapshot again."""
    run.tests(
        "pytestmark = pytest.mark.isolated(snapshot='module', timeout=1)",
        """
    @pytest.fixture(scope="module")
    def made():
        return ["made"]

    def test_slow(made):
        made.append("dirt")
        subprocess.run(["sleep", "1006"])

    def test_next(made):
        assert made == ["made"]
    """,
    )
    result = run().expect(failed=1, passed=1)
    text = result.of("test_slow").everything
    assert "TIMED OUT after 1 s" in text
    assert "sleep 1006 (pid" in text


def test_exitfirst(run: Run) -> None:
    """Finalisers run also when the session ends early."""
    run.tests(MODULE, LOG, """
    @pytest.fixture(scope="module")
    def made():
        say("up")
        yield
        say("down")

    @pytest.mark.parametrize("n", range(9))
    def test_it(made, n):
        assert n < 1
    """)  # fmt: skip
    run("-x").expect(passed=1, failed=1)
    assert (run.path / "log.txt").read_text("utf-8") == "up down "


@pytest.mark.parametrize("role", ["keeper", "template"])
def test_helper_killed(run: Run, role: str) -> None:
    """The test that was on fails for it; the snapshot is made again for the others."""
    run.tests(MODULE, """
    @pytest.fixture(scope="module")
    def made():
        return ["made"]

    @pytest.mark.parametrize("n", range(6))
    def test_it(made, n):
        assert made == ["made"]
        if n == 2:
            os.close(os.open("reached", os.O_WRONLY))
            time.sleep(60)
    """)  # fmt: skip
    fifo = run.path / "reached"
    os.mkfifo(fifo)
    running = run.start()
    try:
        running.reached(fifo)
        (pid,) = running.descendants(role)
        os.kill(pid, signal.SIGKILL)
        result = running.wait()
    finally:
        running.kill()
    result.expect(passed=5, failed=1)
    assert result.verdicts["test_it[2]"] == "failed"


def test_without_namespaces(run: Run) -> None:
    """--ns-missing=fork: each test sets its fixtures up itself."""
    run.tests(MODULE, """
    @pytest.fixture(scope="module")
    def made():
        return []

    @pytest.mark.parametrize("n", range(3))
    def test_it(made, n):
        assert not made
        made.append(n)
    """)  # fmt: skip
    run("--ns-missing=fork", prefix=HOSTS[0].prefix).expect(passed=3)


@pytest.mark.needs("limits")
def test_limits_are_each_tests_own(run: Run) -> None:
    """The snapshot itself is not held to them."""
    run.tests("pytestmark = pytest.mark.isolated(snapshot='module', memory='64M')", """
    @pytest.fixture(scope="module")
    def large():
        return bytearray(100 << 20)

    def test_fine(large): assert len(large) == 100 << 20
    def test_greedy(large): bytearray(100 << 20)
    def test_fine_again(large): assert large[5] == 0
    """)  # fmt: skip
    result = run().expect(passed=2, failed=1)
    assert result.of("test_greedy").text.startswith("OUT OF MEMORY: limit 64 MiB")


def test_scope_contradicts(run: Run) -> None:
    """Tests can't share one process and be forks of one; a nearer key wins."""
    run.tests("""
    @pytest.mark.isolated(snapshot="module", scope="module")
    def test_both(): pass
    """)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "scope='module' contradicts snapshot='module'" in result.err
    run.tests("""
    @pytest.mark.isolated(scope="module")
    def test_nearer(sandbox): assert sandbox.spec.snapshot is None
    """)
    run.isolated().expect(passed=1)
    run.write("pytest.ini", "[pytest]\nnsisolate_snapshot = module\n")
    run.isolated().expect(passed=1)


def test_rerun(run: Run) -> None:
    """pytest-rerunfailures: another attempt has a sandbox of its own and sets up by itself."""
    pytest.importorskip("pytest_rerunfailures")
    run.plugins += ("rerunfailures",)
    run.tests(MODULE, LOG, """
    @pytest.fixture(scope="module")
    def made():
        say("up")

    def test_before(made): pass

    def test_flaky(made):
        say("ran")
        assert open("log.txt").read().count("ran") == 2
    """)  # fmt: skip
    result = run("--reruns=2")
    assert result.verdicts == {"test_before": "passed", "test_flaky": "rerun+passed"}, str(result)
    assert (run.path / "log.txt").read_text("utf-8") == "up ran up ran "


def test_xdist(run: Run) -> None:
    """Each worker has its own snapshots."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(MODULE, LOG, DIRTY)
    run.write("test_other.py", (run.path / "test_it.py").read_text("utf-8"))
    run("-n2", "--dist=loadfile").expect(passed=16)
    assert sorted((run.path / "log.txt").read_text("utf-8").split()) == ["down"] * 2 + ["up"] * 2


def test_async_fixtures_are_refused(run: Run) -> None:
    """pytest-asyncio keeps an event loop for them."""
    pytest.importorskip("pytest_asyncio")
    run.plugins += ("asyncio",)
    run.tests(MODULE, """
    import pytest_asyncio

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def connection():
        yield 1

    @pytest.mark.asyncio(loop_scope="module")
    async def test_uses(connection):
        pass

    def test_other():
        pass
    """)  # fmt: skip
    result = run("-o", "asyncio_default_fixture_loop_scope=function")
    assert result.verdicts == {"test_uses": "error", "test_other": "passed"}, str(result)
    text = result.of("test_uses", "setup").text
    assert text.startswith("NO SNAPSHOT of the fixture")
    assert "an event loop" in text


def test_without_capture(run: Run) -> None:
    """Under -s set-up, tests and teardown are seen in order, once."""
    run.tests(MODULE, """
    @pytest.fixture(scope="module")
    def made():
        print("<up>", end="")
        yield
        print("<down>", end="")

    @pytest.mark.parametrize("n", range(3))
    def test_it(made, n):
        print(f"<{n}>", end="", flush=True)
    """)  # fmt: skip
    for option in ("-s", "--capture=sys", "--capture=tee-sys"):
        result = run(option).expect(passed=3)
        if option == "-s":
            assert "<up><0>.<1>.<2>.<down>" in result.out
        else:
            sections = [phase.section("stdout") for phase in result.phases if phase.when == "call"]
            assert sections == ["<up><0>", "<1>", "<2>"]
