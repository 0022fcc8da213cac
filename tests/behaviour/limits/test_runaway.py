"""Tests that run away: bombs of processes, threads and programs, full disks, used-up descriptors.

Each has to end soon after its timeout, with the next test unharmed and nothing left.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.cgroups import always_on

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

#: What a bomb gets to run at its full strength, and how long its end may take on a machine that
#: is busy with other tests as well, in seconds.
TIMEOUT, LIMIT = 1, 45

BOMBS = """
    import threading

    def tries(do):
        while True:
            try:
                do()
            except (OSError, RuntimeError):
                pass

    def forks():
        os.fork()

    def sessions():
        if os.fork() == 0:
            os.setsid()

    def threads():
        threading.Thread(target=tries, args=(threads,)).start()

    def programs():
        if os.fork() == 0:
            os.execv("/bin/sh", ["sh", "-c", "while :; do /bin/true & done"])

    def same_process():
        os.execv(sys.executable, [sys.executable, "-Sc",
            "import os, sys; os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])"])

    def memory():
        if os.fork() == 0:
            held = bytearray(b"x") * (4 << 20)
            while True:
                time.sleep(1)

    def stopped_and_first():
        for _ in range(50):
            if os.fork() == 0:
                try:
                    os.setpriority(os.PRIO_USER, 0, -20)
                except OSError:
                    pass
                tries(lambda: None)
        os.kill(-1, signal.SIGSTOP) if os.getppid() == 0 else None
        os.kill(os.getpid(), signal.SIGSTOP)
        tries(lambda: None)

    def full():
        for place in ("/tmp", "/var/tmp", "/dev/shm", os.environ["PYTEST_BASE"]):
            try:
                with open(f"{place}/full", "wb") as file:
                    while True:
                        file.write(bytes(1 << 20))
            except OSError as error:
                assert error.errno in (errno.ENOSPC, errno.EDQUOT), error
        tries(lambda: None)

    def descriptors():
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        tries(lambda: None)

    def bomb(name, tmp_path):
        os.environ["PYTEST_BASE"] = str(tmp_path)
        tries(globals()[name])
"""


def judge(result: Result, *names: str) -> None:
    """Each bomb has timed out, or was stopped; each test after one has passed."""
    for name in names:
        phase = [one for one in result.phases if f"[{name}]" in one.nodeid and one.text]
        assert phase, f"{name} did not fail\n{result}"
        assert any("TIMED OUT" in one.text or "STOPPED" in one.text for one in phase), str(result)
    after = {name: what for name, what in result.verdicts.items() if name.startswith("test_after")}
    assert set(after.values()) == {"passed"}, str(result)
    assert len(after) == len(names), str(result)


def suite(run: Run, *names: str) -> None:
    """A bomb of each of these, and a harmless test after each."""
    tests = [
        f"""
    @pytest.mark.isolated(timeout={TIMEOUT})
    @pytest.mark.parametrize("name", ["{name}"])
    def test_{name}(name, tmp_path):
        bomb(name, tmp_path)

    def test_after_{name}(tmp_path):
        assert not list(tmp_path.iterdir())
        assert subprocess.run(["true"]).returncode == 0
    """
        for name in names
    ]
    run.tests(BOMBS, *tests)


@pytest.mark.parametrize(
    "names",
    [
        ("forks", "sessions"),
        ("threads", "programs", "same_process"),
        ("memory", "stopped_and_first", "full", "descriptors"),
    ],
    ids="-".join,
)
def test_deadline_is_kept(run_as_each: Run, names: tuple[str, ...]) -> None:
    """Whatever a test does, it is ended at its timeout, and the next one is unharmed."""
    suite(run_as_each, *names)
    judge(run_as_each.isolated(timeout=LIMIT * len(names)), *names)


def test_beside_others(run: Run) -> None:
    """With two tests at once, those beside a bomb are unharmed as well."""
    suite(run, "forks", "threads")
    judge(run.isolated("--ns-jobs=2", timeout=LIMIT * 2), "forks", "threads")


@pytest.mark.parametrize("scope", ["--ns-scope=module", "--ns-snapshot=module"])
def test_of_a_group(run: Run, scope: str) -> None:
    """Where tests share a sandbox, or are forks of a snapshot, those after a bomb still run."""
    suite(run, "forks")
    judge(run.isolated(scope, timeout=LIMIT), "forks")


def test_interrupted(run_as_each: Run) -> None:
    """Ctrl-C ends a run whose test is a bomb without a timeout."""
    fifo = run_as_each.path / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    run_as_each.tests(
        BOMBS,
        f"""
    def test_it(tmp_path):
        os.close(os.open({str(fifo)!r}, os.O_WRONLY))
        bomb("forks", tmp_path)
    """,
    )
    running = run_as_each.start("--ns-isolate")
    try:
        running.reached(fifo)
        running.process.send_signal(signal.SIGINT)
        result = running.wait(LIMIT)
        assert result.ret == pytest.ExitCode.INTERRUPTED, str(result)
    finally:
        running.kill()


OLD_KERNEL = """
    import os
    release = {release!r}
    known = os.uname()
    os.uname = lambda: type(known)((*known[:2], release, *known[3:]))
"""


@pytest.mark.parametrize("release", ["6.8.0-31-generic", "5.11.0"])
def test_older_kernels(run_as_each: Run, release: str) -> None:
    """Where pid namespaces have no limit of their own, others hold; the host's is not touched."""
    before = Path("/proc/sys/kernel/pid_max").read_text("ascii")
    run_as_each.write("conftest.py", OLD_KERNEL.format(release=release))
    run_as_each.tests(f"""
    import resource

    def test_limit():
        with open("/proc/sys/kernel/pid_max") as stream:
            assert int(stream.read()) > 100_000 or {before!r}.strip() < "100000"
        if os.getuid() != 0 and {release!r} > "5.14":
            assert resource.getrlimit(resource.RLIMIT_NPROC)[0] <= {always_on.processes()}

    @pytest.mark.isolated(timeout={TIMEOUT})
    def test_bomb():
        while True:
            try:
                os.fork()
            except OSError:
                pass

    def test_after():
        pass
    """)
    options = ["-k", "limit"] if release < "5.14" else []
    root = run_as_each.uid is None
    if root and not os.access("/sys/fs/cgroup", os.W_OK):
        options = ["-k", "limit"]
    result = run_as_each.isolated(*options, timeout=LIMIT)
    assert Path("/proc/sys/kernel/pid_max").read_text("ascii") == before
    if options:
        result.expect(passed=1)
        return
    assert result.verdicts["test_limit"] == result.verdicts["test_after"] == "passed", str(result)
    text = "".join(one.text for one in result.phases)
    assert f"TIMED OUT after {TIMEOUT} s" in text or "TOO MANY PROCESSES" in text, str(result)


def test_limit_is_named(run_as_each: Run) -> None:
    """A test that reaches the limit of its sandbox is told so, and how to raise it."""
    run_as_each.tests("""
    import threading

    def test_it():
        done = threading.Event()
        try:
            while True:
                threading.Thread(target=done.wait).start()
        finally:
            done.set()
    """)
    phase = run_as_each.isolated().expect(failed=1).of("test_it")
    assert "can't start new thread" in phase.text
    hint = phase.section("Different in a sandbox")
    assert f"{always_on.processes()} processes and threads" in hint
    assert "@pytest.mark.isolated(pids=NUMBER)" in hint


@pytest.mark.needs("limits")
def test_more_by_marker(run: Run) -> None:
    """A test may have more processes than the usual limit, if its marker says how many."""
    more = always_on.processes() + 500
    run.tests(f"""
    import threading

    @pytest.mark.isolated(pids={more + 100})
    def test_it():
        done = threading.Event()
        try:
            for _ in range({more}):
                threading.Thread(target=done.wait).start()
        finally:
            done.set()
    """)
    run.isolated().expect(passed=1)


@pytest.mark.parametrize("name", ["forks", "threads"])
def test_without_namespaces(run_as_each: Run, name: str) -> None:
    """A forked process without namespaces is held to its timeout as well."""
    from helpers.crippled import HOSTS

    host = next(one for one in HOSTS if one.name == "no user namespaces")
    suite(run_as_each, name)
    result = run_as_each.isolated("--ns-missing=fork", prefix=host.prefix, timeout=LIMIT)
    text = "".join(one.text for one in result.phases)
    assert "TIMED OUT" in text or "TOO MANY PROCESSES" in text, str(result)
    assert result.verdicts[f"test_after_{name}"] == "passed", str(result)
