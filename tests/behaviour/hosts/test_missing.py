"""On a host that can't isolate, --ns-missing decides, and the doctor says why and what mends it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import HOSTS, Host
from helpers.hosts import become

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

SUITE = """
    @pytest.mark.isolated
    def test_isolated(record_property):
        record_property("pid", os.getpid())
        record_property("user", os.stat("/proc/self/ns/user").st_ino)

    def test_plain(record_property):
        record_property("pid", os.getpid())
        record_property("user", os.stat("/proc/self/ns/user").st_ino)
"""
HOSTILE = """
    pytestmark = pytest.mark.isolated

    def test_crash():
        print("said before")
        ctypes.string_at(0)

    def test_exit():
        os._exit(3)

    @pytest.mark.isolated(timeout=1)
    def test_endless():
        while True:
            pass

    @pytest.mark.isolated(timeout=1)
    def test_stopped():
        os.kill(os.getpid(), signal.SIGSTOP)

    def test_leaks():
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["sleep", "1001"], start_new_session=True)

    def test_daemon():
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "1002"])
            os._exit(0)
        os.close(writer)
        os.wait()
        assert os.read(reader, 1) == b""  # closed by the exec

    def test_good():
        pass
"""


CASES = [
    pytest.param((host, fixture), id=f"{host.name.replace(' ', '-')}-{fixture}")
    for host in HOSTS
    for fixture in ("run", "run_as_nobody")
    if (host.needs, fixture) != ("root", "run_as_nobody")
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Host, str]:
    """Each kind of host that can't isolate, and the fixture of who is on it."""
    found: tuple[Host, str] = request.param
    return found


@pytest.fixture
def host(case: tuple[Host, str], require_capability: Callable[[str], None]) -> Host:
    """Each kind of host that can't isolate."""
    require_capability(case[0].needs)
    return case[0]


@pytest.fixture
def crippled_run(case: tuple[Host, str], request: pytest.FixtureRequest) -> Run:
    """Runs on such a host, by whoever runs the tests and by one without privileges."""
    found: Run = request.getfixturevalue(case[1])
    return found


def explains(host: Host, text: str) -> None:
    """The text names the failed step, the errno and what mends it."""
    for part in (host.stage, host.error, host.mend):
        assert part in text, f"{part!r} is not said\n{text}"


def header(result: Result) -> str:
    """What is printed before the first test."""
    return result.out.partition("\n\n")[0]


def test_error(crippled_run: Run, host: Host) -> None:
    """By default the isolated test is an error that explains; the other one runs."""
    crippled_run.tests(SUITE)
    result = crippled_run(prefix=host.prefix)
    assert result.verdicts == {"test_isolated": "error", "test_plain": "passed"}, str(result)
    text = result.of("test_isolated", "setup").text
    assert text.startswith("SANDBOX FAILED at "), text
    assert host.error in text.splitlines()[0]
    explains(host, text)


def test_skip(crippled_run: Run, host: Host) -> None:
    """The isolated test is skipped, with the reason."""
    crippled_run.tests(SUITE)
    result = crippled_run("--ns-missing=skip", "-rs", prefix=host.prefix)
    assert result.verdicts == {"test_isolated": "skipped", "test_plain": "passed"}, str(result)
    assert result.ret == 0
    (phase,) = [p for p in result.phases if p.outcome == "skipped"]
    assert host.error in phase.text
    assert host.stage in phase.text


def test_run(crippled_run: Run, host: Host) -> None:
    """The isolated test runs in the runner, and the header says so."""
    crippled_run.tests(SUITE)
    result = crippled_run("--ns-missing=run", prefix=host.prefix)
    result.expect(passed=2)
    assert result.value("test_isolated", "pid") == result.value("test_plain", "pid")
    assert host.error in header(result)


def test_fork(crippled_run: Run, host: Host) -> None:
    """The isolated test runs in a fork of the runner's namespaces, and the header says so."""
    crippled_run.tests(SUITE)
    result = crippled_run("--ns-missing=fork", prefix=host.prefix)
    result.expect(passed=2)
    assert result.value("test_isolated", "pid") != result.value("test_plain", "pid")
    assert result.value("test_isolated", "user") == result.value("test_plain", "user")
    assert "without namespaces" in header(result).lower(), result.out
    assert host.error in header(result)


@pytest.mark.parametrize("case", CASES[:1], indirect=True)
def test_fork_catches_hostile_endings_one_by_one(crippled_run: Run, host: Host) -> None:
    """As below, with one test process at a time."""
    catches_hostile_endings(crippled_run, host, jobs=1)


def test_fork_catches_hostile_endings(crippled_run: Run, host: Host) -> None:
    """Crashes, timeouts and leaked processes are still handled in a mere fork."""
    catches_hostile_endings(crippled_run, host, jobs=4)


def catches_hostile_endings(crippled_run: Run, host: Host, *, jobs: int) -> None:
    """Run the hostile tests in mere forks: each has its outcome, and nothing is left."""
    crippled_run.tests(HOSTILE)
    result = crippled_run("--ns-missing=fork", f"--ns-jobs={jobs}", prefix=host.prefix)
    failing = ("test_crash", "test_exit", "test_endless", "test_stopped")
    passing = ("test_leaks", "test_daemon", "test_good")
    expected = {**dict.fromkeys(failing, "failed"), **dict.fromkeys(passing, "passed")}
    assert result.verdicts == expected, str(result)
    crash = result.of("test_crash")
    assert crash.text.startswith("CRASHED with signal 11 (SIGSEGV)")
    assert "said before" in crash.section("stdout")
    assert result.of("test_exit").text.startswith("EXITED with code 3 before reporting")
    assert result.of("test_endless").text.startswith("TIMED OUT after 1 s")
    assert result.of("test_stopped").text.startswith(("TIMED OUT after 1 s", "STOPPED"))
    leaks = result.of("test_leaks", "teardown").everything
    assert "left running: sleep 1000 (pid " in leaks
    assert "left running: sleep 1001 (pid " in leaks
    assert "left running: sleep 1002 (pid " in result.of("test_daemon", "teardown").everything
    assert "left running" not in result.of("test_good", "teardown").everything


@pytest.mark.parametrize("case", CASES[:1], indirect=True)
def test_missing_from_ini(crippled_run: Run, host: Host) -> None:
    """The ini option does the same; the command line overrides it."""
    crippled_run.tests(SUITE)
    crippled_run.write("pytest.ini", "[pytest]\nnsisolate_missing = skip\n")
    crippled_run(prefix=host.prefix).expect(skipped=1, passed=1)
    crippled_run("--ns-missing=error", prefix=host.prefix).expect(error=1, passed=1)
    crippled_run("--ns-missing=run", prefix=host.prefix).expect(passed=2)


def doctor(run: Run, *prefix: str) -> subprocess.CompletedProcess[str]:
    """The doctor as a command of its own."""
    command = [*become(run.uid), *prefix, sys.executable, "-m", "pytest_nsisolate", "doctor"]
    return subprocess.run(
        command, cwd=run.path, capture_output=True, text=True, timeout=60, check=False
    )


def test_doctor_of_a_crippled_host(crippled_run: Run, host: Host) -> None:
    """Both forms of the doctor exit with 1 and name stage, errno and mend."""
    crippled_run.tests("def test_it(): open('ran', 'w').close()")
    option = crippled_run("--ns-doctor", prefix=host.prefix)
    command = doctor(crippled_run, *host.prefix)
    for code, text in ((option.ret, option.out), (command.returncode, command.stdout)):
        assert code == 1, text
        explains(host, text)
        assert "Traceback" not in text
    assert not (crippled_run.path / "ran").exists()


def test_doctor_of_this_host(run_as_each: Run) -> None:
    """Where a sandbox works both forms exit with 0, and run no test."""
    run_as_each.tests("def test_it(): open('ran', 'w').close()")
    option, command = run_as_each("--ns-doctor"), doctor(run_as_each)
    assert option.ret == 0, str(option)
    assert command.returncode == 0, command.stdout + command.stderr
    assert option.out
    assert command.stdout
    assert not (run_as_each.path / "ran").exists()


def test_missing_is_no_matter_where_it_works(run: Run) -> None:
    """Where a sandbox works every value of the option isolates."""
    run.tests("""
    @pytest.mark.isolated
    def test_it():
        assert os.getppid() == 0
    """)
    for value in ("error", "skip", "fork", "run"):
        run(f"--ns-missing={value}").expect(passed=1)
