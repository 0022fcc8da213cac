"""Budgets that the kernel enforces, through pytest: reached, kept, measured, and refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import COMMON, READONLY_CGROUPS
from helpers.hosts import lacks_native, marked, wait_gone

if TYPE_CHECKING:
    from helpers.run import Run, Running

CGROUPS = Path("/sys/fs/cgroup")
pytestmark = pytest.mark.needs("sandbox")
held = pytest.mark.needs("limits")
MIB = 1 << 20


def abandoned(session: str) -> list[str]:
    """The directories of that name in the cgroup hierarchies, if no session holds them."""
    found = []
    for path in CGROUPS.glob(f"**/{session}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            fd = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(str(path))
            finally:
                os.close(fd)
    return found


# memory

GREEDY = """
    @pytest.mark.isolated(memory="64M")
    class TestGreedy:
        def test_bytes(self):
            print("said before")
            bytearray(200 << 20)

        def test_child(self):
            subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"])

        def test_threads(self):
            kept = []
            threads = [threading.Thread(target=lambda: kept.append(bytearray(25 << 20)))
                       for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        def test_files(self):
            with open("/tmp/large", "wb") as stream:
                for _ in range(200):
                    stream.write(bytes(1 << 20))

        def test_setup(self, large):
            pass

        def test_teardown(self, late):
            pass

        @pytest.mark.xfail
        def test_expected(self):
            bytearray(200 << 20)

    @pytest.fixture
    def large():
        return bytearray(200 << 20)

    @pytest.fixture
    def late():
        yield
        time.sleep(0.3)
        bytearray(200 << 20)

    @pytest.mark.isolated
    @pytest.mark.parametrize("number", range(8))
    def test_neighbour(number):
        time.sleep(0.1)

    @pytest.mark.isolated(memory="64M")
    def test_modest(record_property):
        bytearray(40 << 20)
        with open("/proc/self/cgroup") as stream:
            record_property("group", stream.read())
"""


@held
@pytest.mark.parametrize("jobs", [1, 4])
def test_out_of_memory(run: Run, jobs: int) -> None:
    """Whatever took it, and in whichever phase; the neighbours pass."""
    run.tests("import threading", GREEDY)
    result = run(f"--ns-jobs={jobs}", "--ns-properties")
    for name in ("bytes", "child", "threads", "files"):
        text = result.of(f"TestGreedy::test_{name}", "call").text
        assert re.match(r"OUT OF MEMORY: limit 64 MiB, peak 6[345](\.\d+)? MiB\n", text), text
        assert "@pytest.mark.isolated(memory=SIZE)" in text
    assert result.of("TestGreedy::test_setup", "setup").text.startswith("OUT OF MEMORY: ")
    assert result.of("TestGreedy::test_teardown", "call").outcome == "passed"
    assert result.of("TestGreedy::test_teardown", "teardown").text.startswith("OUT OF MEMORY: ")
    assert "said before" in result.of("TestGreedy::test_bytes").everything
    counts = Counter(result.verdicts.values())
    assert counts == {"failed": 4, "error": 1, "passed+error": 1, "passed": 9, "xfailed": 1}
    assert result.value("TestGreedy::test_child", "ns_outcome") == "out of memory"
    session = re.search(r"nsisolate-\d+-\d+", result.value("test_modest", "group"))
    assert session
    assert not abandoned(session[0])


@held
def test_out_of_memory_again_and_again(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(memory="32M")
    @pytest.mark.parametrize("number", range(50))
    def test_greedy(number):
        bytearray(100 << 20)
    """)
    result = run("--ns-jobs=2")
    result.expect(failed=50)
    assert result.out.count("OUT OF MEMORY: limit 32 MiB") >= 50


@held
def test_largest_processes_are_named(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(memory="128M")
    def test_slow():
        code = "import time\\nkept = []\\n"
        code += "while True: kept.append(bytearray(4 << 20)); time.sleep(0.02)  # the-large-one"
        subprocess.run([sys.executable, "-c", code])
    """)
    text = run().of("test_slow", "call").text
    assert text.startswith("OUT OF MEMORY: ")
    section = text.partition("largest processes")[2]
    first = next(line for line in section.splitlines() if "pid" in line)
    assert "the-large-one" in first


@held
def test_where_memory_ran_short(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(memory="64M")
    def test_hoards():
        def hoard():
            kept = []
            while True:
                kept.append(bytearray(1 << 20))
                time.sleep(0.04)  # to be looked at a few times, also where much else runs
        hoard()
    """)
    text = run().of("test_hoards", "call").text
    assert text.startswith("OUT OF MEMORY: ")
    section = text.partition("stacks when memory ran short")[2]
    assert "in hoard" in section
    assert "in test_hoards" in section
    assert "... (called by pytest)" in section


@held
def test_stacks_of_much_memory_are_shown_for_that_alone(run: Run) -> None:
    """A test that had much memory and ends for another reason shows what that one wrote."""
    run.tests("""
    pytestmark = pytest.mark.isolated(memory="128M", timeout=2)

    @pytest.fixture(autouse=True)
    def much():
        kept = bytearray(100 << 20)
        time.sleep(0.4)  # the time to be looked at
        yield

    def test_killed():
        os.kill(os.getpid(), signal.SIGKILL)

    def test_crashed():
        import ctypes
        ctypes.string_at(0)

    def test_late():
        time.sleep(100)
    """)
    result = run()
    killed = result.of("test_killed", "call").text
    assert killed.startswith("CRASHED with signal 9 ")
    assert "Current thread" not in killed
    crashed = result.of("test_crashed", "call").text
    assert crashed.count("Fatal Python error: ") == 1
    assert "in much" not in crashed
    assert "in string_at" in crashed
    late = str(result.of("test_late", "call").sections)
    assert late.count("Current thread") == 1
    assert "in test_late" in late
    assert "in much" not in late


@held
def test_crash_is_shown_where_the_runner_looks_at_the_same_moment(run: Run) -> None:
    """What faulthandler has written of a crash outlasts the question where the test is."""
    run.tests("""
    pytestmark = pytest.mark.isolated(memory="128M", timeout=60)

    @pytest.mark.parametrize("number", range(60))
    def test_crashed(number):
        import ctypes
        kept = bytearray(100 << 20)  # to be looked at, and to take its time to end
        time.sleep(0.2 + 0.001 * number)
        ctypes.string_at(0)
    """)
    result = run("--ns-jobs", "4").expect(failed=60)
    for number in range(60):
        text = result.of(f"test_crashed[{number}]", "call").text
        assert text.count("Fatal Python error: Segmentation fault") == 1
        assert "in test_crashed" in text


@held
def test_memory_is_measured(run: Run) -> None:
    """What a test allocates is what is reported beyond an empty test; children count."""
    run.tests("""
    pytestmark = pytest.mark.isolated(memory="1G")

    def test_empty():
        pass

    def test_own():
        bytearray(100 << 20)

    def test_child():
        subprocess.run([sys.executable, "-c", "bytearray(100 << 20)"], check=True)
    """)
    result = run("--ns-properties").expect(passed=3)
    empty = result.value("test_empty", "ns_peak_memory")
    assert empty < 20 * MIB
    for name in ("test_own", "test_child"):
        peak = result.value(name, "ns_peak_memory")
        # the kernel charges in batches of some hundred KiB
        assert 99 * MIB <= peak - empty <= 115 * MIB


# processes


@held
def test_too_many_processes(run: Run) -> None:
    """The one too many fails with EAGAIN, which a test may handle; a bomb is ended."""
    run.tests("""
    pytestmark = pytest.mark.isolated(pids=20)

    def fork(count):
        for done in range(count):
            try:
                if os.fork() == 0:
                    time.sleep(100)
            except OSError as error:
                assert error.errno == errno.EAGAIN
                return done
        return count

    def test_handled():
        assert fork(30) == 19

    def test_not_handled():
        for _ in range(30):
            if os.fork() == 0:
                time.sleep(100)

    def test_bomb():
        while True:
            try:
                os.fork()
            except OSError:
                pass

    def test_fails_for_another_reason():
        fork(3)
        assert 1 == 2

    def test_threads():
        import threading
        threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(10)]
        for thread in threads:
            thread.start()
    """)
    result = run("--ns-jobs=2", "--ns-properties")
    assert result.verdicts == {
        "test_handled": "passed",
        "test_not_handled": "failed",
        "test_bomb": "failed",
        "test_fails_for_another_reason": "failed",
        "test_threads": "passed",
    }, str(result)
    text = result.of("test_not_handled", "call").text
    assert text.startswith("TOO MANY PROCESSES: limit 20\n")
    assert "BlockingIOError" in text
    assert "@pytest.mark.isolated(pids=NUMBER)" in text
    assert result.of("test_bomb", "call").text.startswith("TOO MANY PROCESSES: limit 20\n")
    assert result.of("test_fails_for_another_reason", "call").text.count("TOO MANY") == 0
    wall = result.value("test_bomb", "ns_wall")
    assert wall < 2 or lacks_native()


# CPU


@held
def test_share_of_a_cpu(run: Run) -> None:
    """2 s of work take 8 s with a quarter of a CPU, and are counted as 2 s."""
    run.tests("""
    def work(seconds):
        begin = time.monotonic()
        while time.process_time() < seconds:
            pass
        return time.monotonic() - begin

    @pytest.mark.isolated(cpus=0.25)
    def test_quarter():
        assert 6.8 <= work(2) <= 9.2

    @pytest.mark.isolated(cpus=2)
    def test_free():
        work(1)
    """)
    result = run("--ns-properties").expect(passed=2)
    cpu = result.value("test_free", "ns_cpu")
    assert 0.9 <= cpu <= 1.1


@held
def test_weights(run: Run) -> None:
    """Two busy tests on one CPU share it as their weights say."""
    run.tests("""
    def work(name):
        # both have begun
        open(f"begun-{name}", "w").close()
        while not (os.path.exists("begun-one") and os.path.exists("begun-three")):
            time.sleep(0.001)
        begin, before = time.monotonic(), time.process_time()
        while time.monotonic() - begin < 3:
            pass
        with open(f"used-{name}", "w") as stream:
            stream.write(str(time.process_time() - before))

    @pytest.mark.isolated(cpuset="0", cpu_weight=100)
    def test_one():
        work("one")

    @pytest.mark.isolated(cpuset="0", cpu_weight=300)
    def test_three():
        work("three")
    """)
    run("--ns-jobs=2").expect(passed=2)
    one, three = (float((run.path / f"used-{name}").read_text()) for name in ("one", "three"))
    assert 3 * 0.85 <= three / one <= 3 * 1.15


@held
def test_cpuset(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(cpuset="0")
    def test_one():
        assert os.sched_getaffinity(0) == {0}
        out = subprocess.run(["nproc"], stdout=subprocess.PIPE).stdout
        assert out.strip() == b"1"
    """)
    run().expect(passed=1)


# I/O


@pytest.mark.needs("io")
def test_io(run: Run) -> None:
    """A direct write is as slow as the limit says."""
    run.tests("""
    @pytest.mark.isolated(io={"wbps": "4M"})
    def test_write():
        import mmap
        buffer = mmap.mmap(-1, 1 << 20)
        # past the page cache, on the disk of the root file system
        where = "/var/cache" if os.access("/var/cache", os.W_OK) else "."
        fd = os.open(where, os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT)
        begin = time.monotonic()
        for _ in range(12):
            os.write(fd, buffer)
        assert 3 * 0.8 <= time.monotonic() - begin <= 3 * 1.2
    """)
    result = run("--ns-properties").expect(passed=1)
    assert result.value("test_write", "ns_outcome") == "completed"


# who is to blame


@held
def test_no_limit_is_blamed_for_another_fault(run: Run) -> None:
    """An expected failure stays one, a handled EAGAIN is no fault, a crash keeps its name."""
    run.tests("""
    def refused():
        children = []
        with contextlib.suppress(BlockingIOError):
            while True:
                children.append(os.fork())
                if children[-1] == 0:
                    time.sleep(100)
        for child in children:
            os.kill(child, signal.SIGKILL)

    @pytest.mark.xfail
    @pytest.mark.isolated(memory="64M")
    def test_expected():
        subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"], check=True)

    @pytest.mark.isolated(pids=10)
    def test_fails():
        refused()
        assert 1 == 2

    @pytest.mark.isolated(pids=10)
    def test_crashes():
        refused()
        ctypes.string_at(0)
    """)
    path = run.path / "test_it.py"
    path.write_text("import contextlib\n" + path.read_text())
    result = run()
    assert result.verdicts == {
        "test_expected": "xfailed",
        "test_fails": "failed",
        "test_crashes": "failed",
    }, str(result)
    assert "TOO MANY" not in result.out
    assert "CRASHED with signal 11 (SIGSEGV)" in result.of("test_crashes").text


@pytest.mark.needs("root", "cgroup1")
def test_limit_above(run: Run) -> None:
    """What a limit above the test's own refuses is not said to be the test's."""
    own = re.search(r":memory:(\S+)", Path("/proc/self/cgroup").read_text())
    assert own
    above = CGROUPS / "memory" / own[1].lstrip("/") / f"nsisolate-above-{os.getpid()}"
    above.mkdir()
    try:
        (above / "memory.limit_in_bytes").write_text(str(200 * MIB))
        run.tests("""
        @pytest.mark.isolated(memory="1G")
        def test_it():
            kept = bytearray(400 << 20)
        """)
        join = f'echo $$ > {above}/cgroup.procs; exec "$@"'
        text = run(prefix=["sh", "-c", join, "sh"]).of("test_it").text
        assert text.startswith("CRASHED with signal 9 (SIGKILL)"), text
    finally:
        above.rmdir()


def test_spec_hook_gives_limits(run: Run) -> None:
    """What a hook puts into a spec is read as what a marker says, or refused so."""
    run.write(
        "conftest.py",
        """
    import dataclasses, os
    def pytest_nsisolate_spec(item, spec):
        return dataclasses.replace(spec, devices=["/dev/null"], cpuset=os.environ["CPUSET"])
    """,
    )
    run.tests("""
    @pytest.mark.isolated
    def test_it(sandbox):
        assert sandbox.spec.devices == ("/dev/null",)
    """)
    result = run(env={"CPUSET": "abc"})
    assert result.ret == pytest.ExitCode.USAGE_ERROR, str(result)
    assert "hook pytest_nsisolate_spec: cpuset='abc' is not allowed" in result.err


# devices and counters


def test_devices(run_as_each: Run) -> None:
    """Only the named nodes are there, and they work; terminals of the sandbox's own."""
    run_as_each.tests("""
    @pytest.mark.isolated(devices=["/dev/null", "/dev/zero", "/dev/ptmx"])
    def test_some():
        nodes = {"null", "zero", "ptmx"}
        assert set(os.listdir("/dev")) == {
            *nodes, "fd", "stdin", "stdout", "stderr", "pts", "shm", "mqueue"}
        assert open("/dev/zero", "rb").read(3) == bytes(3)
        open("/dev/null", "w").write("x")
        ours, theirs = os.openpty()
        os.write(theirs, b"x")
        assert os.read(ours, 1) == b"x"
        assert set(os.listdir("/dev/pts")) == {"0", "ptmx"}
        with open("/dev/shm/there", "w") as stream:
            stream.write("x")

    @pytest.mark.isolated(devices=["/dev/pts/ptmx"])
    def test_nested():
        assert os.listdir("/dev/pts") == ["ptmx"]

    @pytest.mark.isolated(devices=[])
    def test_none():
        with pytest.raises(OSError):
            open("/dev/null")

    @pytest.mark.isolated
    def test_default():
        open("/dev/null", "w").write("x")
        open("/dev/urandom", "rb").read(1)
    """)
    run_as_each("--ns-jobs=2").expect(passed=4)


def test_device_that_is_not_there(run_as_each: Run) -> None:
    run_as_each.tests("""
    @pytest.mark.isolated(devices=["/dev/nosuch"])
    def test_it():
        pass
    """)
    text = run_as_each().of("test_it", "setup").text
    assert re.match(r"SANDBOX FAILED at limit devices by cgroup \S+ /dev/nosuch: ENOENT\n", text)


@pytest.mark.needs("perf")
def test_counters(run: Run) -> None:
    """Events are counted for the test and what it starts."""
    run.tests("""
    @pytest.mark.isolated(counters=True)
    def test_pages():
        bytearray(40 << 20)

    @pytest.mark.isolated(counters=True)
    def test_child():
        subprocess.run([sys.executable, "-c", "bytearray(40 << 20)"], check=True)

    @pytest.mark.isolated(counters=True)
    def test_empty():
        pass

    @pytest.mark.isolated
    def test_not_asked():
        pass
    """)
    result = run("--ns-jobs=2", "--ns-properties").expect(passed=4)
    faults = {
        name: result.value(name, "ns_page_faults")
        for name in ("test_pages", "test_child", "test_empty")
    }
    page = os.sysconf("SC_PAGESIZE")
    for name in ("test_pages", "test_child"):
        more = faults[name]
        assert more - faults["test_empty"] > 0.5 * (40 * MIB) / max(page, 2 * MIB)
    of_the_other = result.of("test_not_asked", "teardown").properties
    assert not any("faults" in name for name, _ in of_the_other)


@held
def test_usage_inside(run: Run) -> None:
    """`sandbox.usage()` tells a test what it has used."""
    run.tests("""
    @pytest.mark.isolated(memory="512M")
    def test_limited(sandbox):
        before = sandbox.usage()
        kept = bytearray(50 << 20)
        after = sandbox.usage()
        assert 45 << 20 <= after.peak_memory - before.peak_memory <= 60 << 20
        assert after.cpu >= before.cpu > 0
        assert after.pids == 1
        assert after.source in ("cgroup", "wait4")

    @pytest.mark.isolated
    def test_plain(sandbox):
        child = subprocess.Popen(["sleep", "100"])
        usage = sandbox.usage()
        assert usage.source == "wait4"
        assert usage.pids == 2
        assert usage.peak_memory > 1 << 20
        child.kill()
    """)
    run().expect(passed=2)


# timeouts


def test_processes_at_the_timeout(run_as_each: Run) -> None:
    """The tree of processes is shown; what does not end by itself gets SIGTERM before the kill."""
    run_as_each.tests("""
    @pytest.mark.isolated(timeout=0.5)
    def test_waits():
        subprocess.Popen(["sh", "-c", "sleep 1001; true"])
        time.sleep(100)

    @pytest.mark.isolated(timeout=0.5)
    def test_deaf():
        code = "import signal, sys, time\\n"
        code += "signal.signal(15, lambda *_: (open('ended', 'w').close(), sys.exit()))\\n"
        code += "open('ready', 'w').close()\\ntime.sleep(100)"
        subprocess.Popen([sys.executable, "-c", code])
        while not os.path.exists("ready"):
            time.sleep(0.01)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        time.sleep(100)
    """)
    result = run_as_each("--ns-jobs=2").expect(failed=2)
    for name, command in (("test_waits", "sleep 1001"), ("test_deaf", "import signal")):
        everything = result.of(name, "call").everything
        assert everything.startswith("TIMED OUT after 0.5 s"), everything
        assert "processes at the timeout" in everything
        assert command in everything
    assert (run_as_each.path / "ended").exists()


# refusals


@pytest.mark.parametrize(
    ("marker", "allowed"),
    [
        ('memory="lots"', 'such as "256M"'),
        ('memory="-1"', "at least 8M"),
        ('memory="1K"', "no test gets started"),
        ("memory=True", "at least 8M"),
        ("cpus=0", "from 0.001 to 65536"),
        ("cpus=70000", "from 0.001 to 65536"),
        ('cpus="half"', "such as 0.5"),
        ("pids=0", "from 1 up"),
        ("pids=1.5", "from 1 up"),
        ('cpuset="none of them"', "0-1,3"),
        ('cpuset="4095"', "CPUs out of"),
        ("io={}", "rbps, wbps, riops, wiops"),
        ('io={"speed": 1}', "rbps, wbps, riops, wiops"),
        ('io={"rbps": "1"}', "bytes from 4K up"),
        ("cpu_weight=0", "from 1 to 10000"),
        ("io_weight=10001", "from 1 to 10000"),
        ('devices=["null"]', "below /dev"),
        ('devices=["/dev/../etc/passwd"]', "below /dev"),
        ('counters="maybe"', "True or False"),
    ],
)
def test_bad_values(run: Run, marker: str, allowed: str) -> None:
    """A usage error that names the test, the key, its value and what is allowed."""
    run.tests(f"""
    @pytest.mark.isolated({marker})
    def test_it():
        pass

    def test_other():
        open("ran", "w")
    """)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, str(result)
    key, value = marker.split("=", 1)
    said = re.search(rf"test_it\.py::test_it: .*?{key}=(.+?) is not allowed; ", result.err)
    assert said, result.err
    assert said[1].replace("'", '"') == value
    assert allowed in result.err
    assert not (run.path / "ran").exists()


@held
def test_defaults_and_options(run: Run) -> None:
    """Ini files and the command line take limits as well, options over markers."""
    run.write("pytest.ini", "[pytest]\nnsisolate_memory = 1G\nnsisolate_cpu_weight = 50\n")
    run.tests("""
    @pytest.mark.isolated
    def test_ini(sandbox):
        assert sandbox.spec.memory == 1 << 30
        assert sandbox.spec.cpu_weight == 50

    @pytest.mark.isolated(memory="2G", io={"rbps": "1G"})
    def test_marker(sandbox):
        assert sandbox.spec.memory == 2 << 30
        assert sandbox.spec.io == {"rbps": 1 << 30}
    """)
    run("-k", "ini").expect(passed=1)
    result = run("--ns-memory=512M", "--ns-cpu-weight=none", "-k", "ini")
    assert "assert 536870912" in str(result)


def test_limits_that_cant_be_held(run_as_nobody: Run) -> None:
    """--ns-missing decides; the text names controller, backend and mend."""
    run_as_nobody.tests("""
    @pytest.mark.isolated(memory="64M")
    def test_limited():
        bytearray(200 << 20)

    @pytest.mark.isolated
    def test_free():
        pass
    """)
    result = run_as_nobody()
    if result.verdicts["test_limited"] == "failed":
        pytest.skip("this host delegates cgroups to users")
    assert result.verdicts == {"test_limited": "error", "test_free": "passed"}
    text = result.of("test_limited", "setup").text
    assert re.match(r"SANDBOX FAILED at limit memory by cgroup v[12]", text), text
    assert "mend: " in text
    skipped = run_as_nobody("--ns-missing=skip")
    assert skipped.verdicts == {"test_limited": "skipped", "test_free": "passed"}
    assert "nsisolate: 1 of 2 isolated tests can't be isolated here (limit memory" in skipped.out
    # Without a group, an rlimit is what remains.
    forked = run_as_nobody("--ns-missing=fork")
    assert forked.verdicts == {"test_limited": "failed", "test_free": "passed"}
    assert "MemoryError" in forked.of("test_limited", "call").text


@held
def test_the_plan_is_shown(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(memory="64M", pids=20)
    def test_it():
        pass
    """)
    out = run("--ns-debug").expect(passed=1).out
    assert "control groups, for 1 tests (test_it.py::test_it ...):" in out
    assert re.search(r"set memory\.\S+ to 67108864", out)
    assert re.search(r"set pids\.max to 20", out)


# what goes wrong


@pytest.mark.needs("root", "limits")
def test_readonly_cgroups(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(memory="64M", cpus=1)
    def test_limited():
        pass

    @pytest.mark.isolated
    def test_free():
        pass
    """)
    result = run(prefix=[sys.executable, "-c", COMMON + READONLY_CGROUPS])
    assert result.verdicts == {"test_limited": "error", "test_free": "passed"}, str(result)
    text = result.of("test_limited", "setup").text
    assert re.match(r"SANDBOX FAILED at limit \w+ by cgroup v[12] \S+: EROFS\n", text), text
    assert "read-only" in text


@pytest.mark.needs("root", "limits")
@pytest.mark.parametrize("frozen", [False, True])
def test_runner_killed(run: Run, *, frozen: bool) -> None:
    """What the kernel does not end with the session, the next one sweeps, or `nsisolate gc`."""
    run.tests("""
    @pytest.mark.isolated(memory="64M", pids=20)  # with pids there is a freezer
    @pytest.mark.parametrize("number", range(4))
    def test_sleeps(number):
        open(f"begun-{number}", "w").close()
        time.sleep(100)
    """)
    running = run.start("--ns-jobs=4")
    try:
        while len(list(run.path.glob("begun-*"))) < 4:
            time.sleep(0.01)
            assert running.process.poll() is None
        own = [path for path in CGROUPS.glob("**/nsisolate-*/test-*") if of(path, running)]
        assert own
        if frozen:
            switches = (("freezer.state", "FROZEN"), ("cgroup.freeze", "1"))
            found = [(path / name, word) for path in own for name, word in switches]
            found = [(file, word) for file, word in found if file.exists()]
            assert found
            for file, word in found:
                file.write_text(word)
        running.process.kill()
        running.process.wait()
        run.write(
            "other/test_it.py",
            "import pytest\n@pytest.mark.isolated(memory='64M')\ndef test_it():\n    pass\n",
        )
        run("other").expect(passed=1)
        subprocess.run([sys.executable, "-m", "pytest_nsisolate", "gc"], check=True, timeout=60)
        assert not wait_gone(running.marker)
        assert not abandoned(own[0].parent.name)
    finally:
        running.kill()


def of(group: Path, running: Running) -> bool:
    """Whether the processes of a group are of that run."""
    pids = {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
    return bool(pids & set(marked(running.marker)))
