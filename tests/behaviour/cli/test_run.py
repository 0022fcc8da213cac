"""``nsisolate run``: exit codes, limits, signals, streams, the terminal, and nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.commands import PROGRAM, Commands, still_there
from helpers.hosts import DEADLINE, marked, namespaces, nobody_directory, proc_bytes, wait_gone
from helpers.screens import screen

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture
def as_nobody(require_capability: Callable[[str], None]) -> Iterator[Commands]:
    """Without any privilege."""
    require_capability("unprivileged")
    with nobody_directory() as (path, uid):
        yield Commands(path=path, uid=uid)


@pytest.fixture(params=["root", "unprivileged"])
def as_each(request: pytest.FixtureRequest, require_capability: Callable[[str], None]) -> Commands:
    """As root, and without any privilege."""
    require_capability(request.param)
    name = "commands" if request.param == "root" else "as_nobody"
    found: Commands = request.getfixturevalue(name)
    return found


# exit codes


@pytest.mark.parametrize(
    ("source", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_exit_code_is_the_commands(as_each: Commands, source: str, code: int) -> None:
    done = as_each.shell(source)
    assert done.returncode == code, done.stderr
    assert f"exit code  {code}" in done.stderr


def test_signal_is_named(commands: Commands) -> None:
    done = commands.shell("kill -SEGV $$", "--quiet")
    assert done.returncode == 128 + signal.SIGSEGV
    assert done.stderr == "nsisolate: ended by signal 11 (SIGSEGV)\n"


def test_not_found(as_each: Commands) -> None:
    done = as_each("run", "--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "nsisolate: can't run 'no-such-command': No such file or directory\n"


def test_not_executable(as_each: Commands) -> None:
    file = as_each.path / "data"
    file.write_text("text")
    file.chmod(0o644)
    done = as_each("run", "--", "./data")
    assert done.returncode == 126
    assert "can't run './data': Permission denied" in done.stderr
    file.chmod(0o755)
    done = as_each("run", "--", "./data")
    assert done.returncode == 126
    assert "#!/bin/sh" in done.stderr


def test_timeout(as_each: Commands) -> None:
    done = as_each.shell("sleep 1000", "--timeout", "0.3")
    assert done.returncode == 124
    assert "nsisolate: TIMED OUT after 0.3 s" in done.stderr


def test_timeout_of_what_ignores_it_or_stands_still(commands: Commands) -> None:
    for source in ("trap '' TERM; sleep 1000; sleep 1000", "kill -STOP $$; trap '' TERM; sleep 99"):
        begin = time.monotonic()
        assert commands.shell(source, "--timeout", "0.3", "--quiet").returncode == 124
        assert time.monotonic() - begin < 15


def test_command_may_end_properly_at_the_timeout(commands: Commands) -> None:
    done = commands.shell("trap 'echo bye; exit 3' TERM; sleep 1000 & wait", "--timeout", "0.3")
    assert done.returncode == 124
    assert done.stdout == "bye\n"


# the sandbox


def test_it_is_a_sandbox(as_each: Commands) -> None:
    done = as_each.python(
        "import os; base = '/proc/self/ns/'"
        "; print(*(os.readlink(base + name) for name in os.listdir(base)))"
        "; print(os.getpid(), os.getppid(), os.getuid(), os.getcwd())",
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    inside, facts = done.stdout.splitlines()
    for name, inode in namespaces().items():
        assert f"{name}:[{inode}]" not in inside
    pid, parent, uid, *_ = facts.split()
    assert (pid, parent) == ("2", "0")
    assert int(uid) == (os.geteuid() if as_each.uid is None else as_each.uid)
    assert facts.endswith(str(as_each.path))


def test_no_capabilities_without_root(as_nobody: Commands) -> None:
    done = as_nobody.shell("grep -E 'Cap|NoNewPrivs' /proc/self/status", "--quiet")
    values = {line.split()[0]: int(line.split()[1], 16) for line in done.stdout.splitlines()}
    assert values.pop("NoNewPrivs:") == 1
    assert set(values.values()) == {0}


def test_user_root(as_nobody: Commands) -> None:
    done = as_nobody.shell("id -u; touch here", "--quiet", "--user", "root")
    assert done.stdout == "0\n"
    assert (as_nobody.path / "here").exists()


def test_options_of_the_sandbox(commands: Commands) -> None:
    done = commands.shell(
        "hostname; readlink /proc/self/ns/net /proc/self/ns/ipc; df -k /tmp | tail -n1",
        *("--hostname", "box", "--net", "host", "--share", "ipc", "--tmpfs", "3M", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    name, net, ipc, tmp = done.stdout.splitlines()
    assert name == "box"
    assert (net, ipc) == (f"net:[{namespaces()['net']}]", f"ipc:[{namespaces()['ipc']}]")
    assert "3072" in tmp.split()


def test_environment(commands: Commands) -> None:
    options = ("--env", "clean", "--env", "A=b c=d", "--env", "LANG=", "--quiet")
    done = commands("run", *options, "--", "env", env={"SECRET": "x"})
    lines = done.stdout.splitlines()
    assert "A=b c=d" in lines
    assert "LANG=" in lines
    assert not any(line.startswith("SECRET=") for line in lines)
    assert "SECRET=x" in commands("run", "--quiet", "--", "env", env={"SECRET": "x"}).stdout


def test_only_the_standard_streams_are_open(commands: Commands) -> None:
    done = commands.python("import os; print(os.listdir('/proc/self/fd'))", "--quiet")
    assert done.stdout == "['0', '1', '2', '3']\n"  # the last is the listing itself


def test_signals_are_as_at_the_start(commands: Commands) -> None:
    done = commands.shell("grep Sig /proc/self/status", "--quiet")
    values = dict(line.split() for line in done.stdout.splitlines())
    internal = 0b11 << 31  # 32 and 33 are the C library's, whose posix_spawn leaves them ignored
    assert int(values["SigBlk:"], 16) == int(values["SigIgn:"], 16) & ~internal == 0
    nohup = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    done = commands("run", "--quiet", "--", "grep", "SigIgn", "/proc/self/status", prefix=nohup)
    assert int(done.stdout.split()[1], 16) & ~internal == 1 << signal.SIGHUP - 1


def test_program_of_a_directory_that_is_hidden(commands: Commands) -> None:
    """What is installed below a private /tmp is brought in, with what stands beside it."""
    with tempfile.TemporaryDirectory(prefix="installed-", dir="/tmp") as name:
        place = Path(name)
        for folder in ("bin", "lib", "links"):
            (place / folder).mkdir()
        (place / "lib/text").write_text("found\n")
        program = place / "bin/program"
        program.write_text(f"#!{place}/bin/shell\ncat {place}/lib/text; ls {place}/../\n")
        program.chmod(0o755)
        (place / "bin/shell").symlink_to(shutil.which("sh") or "/bin/sh")
        (place / "links/program").symlink_to("../bin/program")
        done = commands("run", "--quiet", "--", place / "links/program")
        assert done.stdout.splitlines()[0] == "found", done.stderr


def test_closed_standard_streams(commands: Commands) -> None:
    prefix = ("sh", "-c", 'exec "$@" <&- >&-', "sh")
    done = commands("run", "--", "sh", "-c", "echo hi; cat; exit 4", prefix=prefix)
    assert done.returncode == 4
    assert "exit code  4" in done.stderr


# streams


def test_standard_input_and_big_output(commands: Commands) -> None:
    data = os.urandom(5 << 20).hex().encode()
    done = commands("run", "--quiet", "--", "cat", input=data)
    assert done.stdout.encode() == data
    assert done.stderr == ""


def test_quiet_and_json(commands: Commands) -> None:
    assert commands.shell("true", "--quiet").stderr == ""
    found = commands.measured("dd if=/dev/zero of=x bs=1M count=1 2>&1; sleep 0.2")
    assert found["version"] == 1
    assert (found["exit_code"], found["outcome"], found["messages"]) == (0, "completed", [])
    assert 0.2 <= found["wall"] < 10
    assert found["memory_peak"] > 0
    assert found["cpu_user"] + found["cpu_system"] < 1


def test_what_is_left_running_is_ended_and_named(as_each: Commands) -> None:
    done = as_each.shell("sleep 1234 & setsid sleep 1235 & sleep 0.2")
    assert done.returncode == 0
    assert "ended      sleep 1234 (pid " in done.stderr
    assert "ended      sleep 1235 (pid " in done.stderr


def test_killing_all_it_sees(commands: Commands) -> None:
    """Signals to its process group and to every process reach nothing outside."""
    assert commands.shell("kill -TERM 0; sleep 5").returncode == 143
    assert commands.shell("kill -9 -1; exit 5").returncode == 5
    assert commands.shell("kill -9 1; exit 6").returncode == 6


# limits

FILL = "b = bytearray(200 << 20)"


@pytest.mark.needs("cgroup1")
class TestLimits:
    @staticmethod
    def out_of_memory(done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode == 137, done.stderr
        assert "OUT OF MEMORY: limit 64 MiB, peak 64 MiB" in done.stderr

    def test_memory(self, commands: Commands) -> None:
        self.out_of_memory(commands.python(FILL, "--memory", "64M"))

    def test_memory_of_a_child(self, commands: Commands) -> None:
        source = f"{sys.executable} -I -S -c '{FILL}'; echo $?"
        self.out_of_memory(commands.shell(source, "--memory", "64M", "--quiet"))

    def test_memory_of_files_in_tmp(self, commands: Commands) -> None:
        source = "dd if=/dev/zero of=/tmp/x bs=1M count=100"
        self.out_of_memory(commands.shell(source, "--memory", "64M"))

    def test_memory_that_suffices(self, commands: Commands) -> None:
        done = commands.python("b = bytearray(30 << 20)", "--memory", "64M")
        assert done.returncode == 0
        assert "of at most 64 MiB" in done.stderr

    def test_cpus(self, commands: Commands) -> None:
        busy = "import time\nwhile time.process_time() < 0.5: pass"
        found = commands.measured(f"exec {sys.executable} -I -S -c '{busy}'", "--cpus", "0.25")
        assert found["limits"] == {"cpus": 0.25}
        assert 1.4 < found["wall"] < 6
        assert 0.4 < found["cpu_user"] + found["cpu_system"] < 0.8

    def test_pids(self, commands: Commands) -> None:
        found = commands.measured("for i in 1 2 3 4 5 6; do sleep 1 & done", "--pids", "4")
        assert found["forks_refused"] >= 1
        assert found["pids_peak"] <= 4
        assert found["messages"][0].startswith("TOO MANY PROCESSES: limit 4")

    def test_cpuset(self, commands: Commands) -> None:
        first = min(os.sched_getaffinity(0))
        done = commands.shell("grep Cpus_allowed_list /proc/self/status", "--cpuset", str(first))
        assert done.stdout.split()[1] == str(first)

    def test_cpus_that_are_not_there(self, commands: Commands) -> None:
        done = commands.shell("echo ran", "--cpuset", "4000")
        assert done.returncode == 125
        assert done.stdout == ""
        assert "LIMIT CAN'T BE HELD: cpuset by cgroup v1 4000: EINVAL" in done.stderr
        assert "mend: Name CPUs that are there." in done.stderr

    def test_nothing_is_left(self, commands: Commands) -> None:
        # The shell stays: in the midst of an exec a process has no command line.
        script = "echo up; sleep 4321; :"
        with running(commands, "--memory", "64M", source=script) as process:
            groups = commands.cgroups_of(script)
            assert groups
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 143
        assert not still_there(groups)


@pytest.mark.needs("cgroup1")
@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become a user without cgroups")
def test_limits_without_cgroups_are_refused(as_nobody: Commands) -> None:
    done = as_nobody.shell("echo ran", "--memory", "64M")
    assert done.returncode == 125
    assert done.stdout == ""
    assert "LIMIT CAN'T BE HELD: memory by cgroup v1" in done.stderr
    assert "only root may make cgroups" in done.stderr
    assert "mend: sudo cgcreate" in done.stderr
    # Without limits it runs, and says whose figures these are.
    assert "source     wait4" in as_nobody.shell("true").stderr


def test_sandbox_that_cannot_be_built(as_nobody: Commands) -> None:
    from helpers.crippled import COMMON, NO_USER_NAMESPACES

    prefix = (sys.executable, "-c", COMMON + NO_USER_NAMESPACES)
    done = as_nobody("run", "--", "echo", "ran", prefix=prefix)
    assert done.returncode == 125
    assert done.stdout == ""
    assert "nsisolate: SANDBOX FAILED at unshare user and pid: ENOSPC" in done.stderr
    assert "mend: sudo sysctl -w user.max_user_namespaces" in done.stderr


# signals


@contextmanager
def running(
    commands: Commands, *options: str, source: str = "echo up; exec sleep 4321"
) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose command has said something."""
    process = commands.start("run", *options, "--", "sh", "-c", source)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == b"up\n"
        yield process
        process.wait(DEADLINE)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert not wait_gone(commands.marker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(as_each: Commands, number: signal.Signals) -> None:
    with running(as_each) as process:
        # Whom it is for: the shell that tests run in may have become another user first.
        process.send_signal(number)
        assert process.wait(DEADLINE) == 128 + number


def test_command_may_handle_a_signal(commands: Commands) -> None:
    source = "trap 'echo got; exit 9' TERM; echo up; sleep 1000 & wait"
    with running(commands, source=source) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 9
        assert process.stdout is not None
        assert process.stdout.read() == b"got\n"


def test_signal_before_the_start(commands: Commands) -> None:
    """Whenever it comes, it ends all of it, and soon."""
    for pause in (0.02, 0.05, 0.08, 0.11):
        process = commands.start("run", "--", "sleep", "1000")
        time.sleep(pause)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
        assert process.returncode in (143, -signal.SIGTERM)
        assert not wait_gone(commands.marker)


def test_everything_dies_with_it(as_each: Commands) -> None:
    source = "setsid sleep 4322 & echo up; sleep 4321"
    with running(as_each, source=source) as process:
        wait_for_sleep(as_each, 2)
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
        assert not wait_gone(as_each.marker)


def is_sleep(pid: int) -> bool:
    """Whether it is that program, and not stopped."""
    state = proc_bytes(pid, "stat").rpartition(b") ")[2][:1]
    return state == b"S" and proc_bytes(pid, "cmdline").startswith(b"sleep\0")


def wait_for_sleep(commands: Commands, number: int) -> None:
    """Wait until so many of them sleep."""
    end = time.monotonic() + DEADLINE
    while sum(is_sleep(pid) for pid in marked(commands.marker)) < number:
        assert time.monotonic() < end
        time.sleep(0.01)


# the terminal

#: Not a shell: dash forgets a Ctrl-C that comes while it forks.
TALK = "import time; print('begun', flush=True); print('got', input(), flush=True); time.sleep(99)"


def test_terminal(commands: Commands) -> None:
    """It reads and writes; Ctrl-C ends the command, and the usage still comes."""
    source = f"import os; assert os.isatty(0) and os.isatty(2); {TALK}"
    with screen(commands, *PROGRAM, "run", "--", sys.executable, "-ISc", source) as one:
        one.expect("begun")
        one.type("abc\n")
        one.expect("got abc")
        one.type("\x03")
        one.expect("exit code  130")
        assert one.process.wait(DEADLINE) == 130


def test_job_control(commands: Commands) -> None:
    """Under a shell: Ctrl-Z stops all of it, fg goes on, and Ctrl-C comes through."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    run = " ".join([*PROGRAM, "run", "--quiet"])
    with screen(commands, shell, "--norc", "--noprofile", "-i") as one:
        one.expect("prompt:")
        one.type(f"{run} -- sh -c 'echo started; while read x; do echo got $x; done'\n")
        one.expect("started\r\n")
        one.type("a\n")
        one.expect("got a\r\n")
        one.type("\x1a")
        one.expect("Stopped")
        one.expect("prompt:")
        one.type("fg\n")
        one.expect("read x")
        one.type("b\n")
        one.expect("got b\r\n")
        one.type("\x03")
        one.expect("prompt:")
        one.type("echo code=$?\n")
        one.expect("code=130\r\n")


def test_pipeline_on_a_terminal(commands: Commands) -> None:
    """What reads the terminal gets it when it asks; the other end of the pipe is not stopped."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    run = " ".join([*PROGRAM, "run", "--quiet"])
    with screen(commands, shell, "--norc", "--noprofile", "-i") as one:
        one.expect("prompt:")
        one.type(f'{run} -- {sys.executable} -ISc "{TALK}" | sed -u s/^/out:/\n')
        one.expect("out:begun\r\n")
        one.type("a\n")
        one.expect("out:got a\r\n")
        one.type("\x03")
        one.expect("prompt:")
        one.type(f"{run} -- sleep 99 | cat\n")
        one.expect("cat\r\n")
        wait_for_sleep(commands, 1)
        one.type("\x1a")
        one.expect("Stopped")
        one.expect("prompt:")
        one.type("fg\n")
        # The shell writes this before it hands over the terminal, and continues the job after.
        one.expect("cat\r\n")
        wait_for_sleep(commands, 1)
        one.type("\x03")
        one.expect("prompt:")


# mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ["no command", "nsisolate run -- make test"]),
        (("--",), ["no command"]),
        (("--memory", "lots"), ["option --memory", "memory='lots'", "such as"]),
        (("--memory", "-1"), ["--memory"]),
        (("--memory", "1K"), ["option --memory", "memory='1K'", "at least 8M"]),
        (("--cpus", "0"), ["option --cpus", "cpus='0'", "0.001"]),
        (("--cpus", "nan"), ["option --cpus", "cpus='nan'"]),
        (("--pids", "0"), ["option --pids", "pids='0'", "from 1 up"]),
        (("--cpuset", "a"), ["option --cpuset", "cpuset='a'", "0-1,3"]),
        (("--io", "speed=1"), ["option --io", "io='speed=1'", "rbps, wbps, riops, wiops"]),
        (("--cpu-weight", "0"), ["option --cpu-weight", "cpu_weight='0'", "10000"]),
        (("--io-weight", "10001"), ["option --io-weight", "10000"]),
        (("--timeout", "soon"), ["option --timeout", "timeout='soon'", "above 0"]),
        (("--net", "wifi"), ["option --net", "net='wifi'", "loopback"]),
        (("--user", "bob"), ["option --user", "user='bob'", "root"]),
        (("--tmpfs", "1"), ["option --tmpfs", "tmpfs='1'", "at least 1M"]),
        (("--hostname", "a b"), ["option --hostname", "letters"]),
        (("--env", "dirty"), ["option --env", "env='dirty'", "clean"]),
        (("--share", "user"), ["option --share", "share='user'", "net, uts, ipc, cgroup"]),
        (("--share", "uts", "--hostname", "x"), ["contradicts share"]),
        (("--quiet", "--json"), ["not allowed with"]),
        (("--speed", "9"), ["--speed", "nsisolate run --help"]),
    ],
    ids=" ".join,
)
def test_usage_errors(commands: Commands, words: tuple[str, ...], said: list[str]) -> None:
    command = ("--", "touch", "ran") if words not in ((), ("--",)) else ()
    done = commands("run", *words, *command)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("usage: nsisolate run ")
    for part in said:
        assert part in done.stderr
    assert not (commands.path / "ran").exists()


def test_command_without_the_dashes(commands: Commands) -> None:
    """They may be left out; a later pair is the command's own."""
    done = commands("run", "--quiet", "sh", "-c", 'echo "$@"', "x", "--memory", "--", "y")
    assert done.stdout == "--memory -- y\n"
    done = commands("run", "--quiet", "--", "echo", "--", "--help")
    assert done.stdout == "-- --help\n"


def test_help(commands: Commands) -> None:
    done = commands("run", "--help")
    assert done.returncode == 0
    for word in ("--memory SIZE", "examples:", "exit status:", "124", "125", "126", "127", "137"):
        assert word in done.stdout
