"""``--ns-keep``: sandboxes that outlive their session, and what looks into them and ends them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.commands import PROGRAM, Commands, still_there
from helpers.hosts import DEADLINE, marked, proc_bytes, wait_gone
from helpers.run import Run
from helpers.screens import screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.run import Result, Running

pytestmark = pytest.mark.needs("sandbox")

LEAVES = """
    def test_bad():
        with open("/tmp/left", "w") as file:
            file.write("behind")
        subprocess.Popen(["sleep", "4444"])
        assert 0

    def test_good():
        subprocess.Popen(["sleep", "4445"])
    """


class Session:
    """One that has ended; what it kept."""

    def __init__(self, running: Running, result: Result, commands: Commands) -> None:
        self.running, self.result, self.commands = running, result, commands
        self.ids: list[str] = re.findall(
            r"^  \S+.*: nsisolate enter (\w+)$", result.out, re.MULTILINE
        )

    @property
    def id(self) -> str:
        """Of the only one."""
        assert len(self.ids) == 1, str(self.result)
        return self.ids[0]

    def enter(self, *command: str) -> str:
        """What a command in there prints."""
        done = self.commands("enter", self.id, *command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def runs(self, *words: str) -> bool:
        """Whether a process of the session has this command line."""
        wanted = b"\0".join(word.encode() for word in words) + b"\0"
        return any(proc_bytes(pid, "cmdline") == wanted for pid in marked(self.running.marker))

    def custodian(self) -> int:
        """Its pid."""
        pids = marked(self.running.marker)
        (found,) = [pid for pid in pids if b"custodian import" in proc_bytes(pid, "cmdline")]
        return found

    def wait_gone(self) -> None:
        """Wait until no process of it is left."""
        left = wait_gone(self.running.marker, DEADLINE)
        assert not left, f"left running: {left}"


@contextmanager
def session(run: Run, *args: str, keep: str = "failed") -> Iterator[Session]:
    """Run the tests to the end; what was kept is ended with the block."""
    commands = Commands(path=run.path, uid=run.uid)
    running = run.start("--ns-isolate", f"--ns-keep={keep}", *args)
    try:
        found = Session(running, running.wait(), commands)
        yield found
        commands("gc", *found.ids)
        found.wait_gone()
    finally:
        running.kill()


def listed(commands: Commands, name: str) -> bool:
    """Whether `nsisolate ps` lists a sandbox by that id."""
    done = commands("ps")
    assert done.returncode == 0, done.stderr
    return any(line.startswith(name + " ") for line in done.stdout.splitlines())


def wait_unlisted(commands: Commands, name: str) -> None:
    end = time.monotonic() + DEADLINE
    while listed(commands, name):
        assert time.monotonic() < end, f"{name} is still listed"


# what is kept


def test_failed_test(run_as_each: Run) -> None:
    """It outlives the session with its files and processes; the passed one's is gone."""
    run_as_each.tests(LEAVES)
    with session(run_as_each, "--ns-properties") as one:
        one.result.expect(failed=1, passed=1)
        teardown = one.result.of("test_bad", "teardown")
        assert ["ns_kept", one.id] in teardown.properties
        assert f"nsisolate enter {one.id}" in teardown.section("Sandbox kept")
        assert "1 sandbox kept for 1 h" in one.result.out
        assert one.runs("sleep", "4444")
        assert not one.runs("sleep", "4445")
        assert one.enter("cat", "/tmp/left") == "behind"
        assert one.enter("hostname") == "isolated\n"
        assert one.enter("pwd") == f"{run_as_each.path}\n"
        assert one.enter("sh", "-c", "tr '\\0' ' ' < /proc/3/cmdline") == "sleep 4444 "
        lines = one.commands("ps").stdout.splitlines()
        (at,) = [n for n, line in enumerate(lines) if line.startswith(one.id)]
        assert lines[at].endswith("test_it.py::test_bad (failed)")
        assert "sleep 4444 (pid 3" in lines[at + 1]
        done = one.commands("gc", one.id)
        assert done.returncode == 0, done.stdout
        assert done.stdout == f"ended {one.id}, the sandbox of test_it.py::test_bad\n"
        one.wait_gone()
        assert one.commands("enter", one.id, "true").returncode == 125
        one.ids.clear()


@pytest.mark.parametrize("user", ["same", "root"])
def test_all_its_namespaces(run_as_each: Run, user: str) -> None:
    """The command is where the test was, with the test's ids, rights and environment."""
    run_as_each.tests(f"""
    @pytest.mark.isolated(env={{"COLOUR": "blue"}}, hostname="elsewhere", clock=3600, user="{user}")
    def test_bad(sandbox, record_property):
        record_property("namespaces", sandbox.namespaces)
        with open("/proc/self/status") as file:
            wanted = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs")
            record_property("rights", [line for line in file if line.startswith(wanted)])
        assert 0
    """)
    source = """if True:
        import json, os
        names = sorted(os.listdir("/proc/self/ns"))
        with open("/proc/self/status") as file:
            wanted = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs")
            rights = [line for line in file if line.startswith(wanted)]
        inodes = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in names}
        print(json.dumps([inodes, rights, os.environ["COLOUR"], os.uname().nodename]))
    """
    with session(run_as_each) as one:
        import json

        said = json.loads(one.enter(sys.executable, "-I", "-S", "-c", source))
        inside = one.result.value("test_bad", "namespaces")
        assert {name: said[0][name] for name in inside} == inside
        assert said[0]["time"] != os.stat("/proc/self/ns/time").st_ino
        assert said[1:] == [one.result.value("test_bad", "rights"), "blue", "elsewhere"]


def test_exit_status(run: Run) -> None:
    run.tests("def test_bad(): assert 0")
    with session(run) as one:
        for source, code in (("exit 7", 7), ("kill -TERM $$", 143), ("exec /tmp", 126)):
            assert one.commands("enter", one.id, "sh", "-c", source).returncode == code
        done = one.commands("enter", one.id, "--", "no-such-program")
        assert done.returncode == 127
        assert "can't run 'no-such-program'" in done.stderr
        done = one.commands("enter", one.id, "cat", input=b"from outside")
        assert (done.returncode, done.stdout) == (0, "from outside")


def test_crash_and_timeout(run_as_each: Run) -> None:
    """What a test that hangs has started is not asked to end; the test process itself is gone."""
    run_as_each.tests("""
    def test_crash():
        subprocess.Popen(["sleep", "4451"])
        os.abort()

    @pytest.mark.isolated(timeout=5)
    def test_hang():
        subprocess.Popen(["sleep", "4452"])
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        while True:
            pass
    """)
    with session(run_as_each) as one:
        one.result.expect(failed=2)
        assert "test_crash (crashed): nsisolate enter" in one.result.out
        assert "test_hang (timed out): nsisolate enter" in one.result.out
        assert one.runs("sleep", "4451")
        assert one.runs("sleep", "4452")
        for name in one.ids:
            done = one.commands("enter", name, "sh", "-c", "ls -d /proc/[0-9]* | sort")
            assert "/proc/2\n" not in done.stdout


def test_all_of_them(run: Run) -> None:
    """Passed tests as well; and the tmp_path of each is found where the test saw it."""
    run.tests("""
    def test_it(tmp_path, record_property):
        record_property("path", str(tmp_path))
        (tmp_path / "file").write_text("x")
    """)
    with session(run, keep="all") as one:
        one.result.expect(passed=1)
        assert "test_it.py::test_it (passed): nsisolate enter" in one.result.out
        path = one.result.value("test_it", "path")
        assert Path(path, "file").read_text() == "x"
        assert one.enter("cat", f"{path}/file") == "x"


def test_group_of_tests(run: Run) -> None:
    """Tests that share a sandbox: it is kept once, at the end of the group."""
    run.tests("""
    @pytest.mark.isolated(scope="class")
    class TestGroup:
        def test_a(self):
            assert 0

        def test_b(self):
            open("/tmp/b", "w").close()
    """)
    with session(run) as one:
        assert "TestGroup::test_b and 1 before it (failed): nsisolate enter" in one.result.out
        assert one.enter("ls", "/tmp/b") == "/tmp/b\n"


def test_no_more_than_some(run: Run) -> None:
    run.tests("""
    @pytest.mark.parametrize("n", range(18))
    def test_it(n):
        assert 0
    """)
    with session(run, "--ns-jobs=2") as one:
        assert len(one.ids) == 16
        said = "nsisolate: not kept (no more than 16 are kept): "
        (line,) = [line for line in one.result.out.splitlines() if line.startswith(said)]
        assert len(line.removeprefix(said).split(", ")) == 2


def test_what_cannot_be_kept(run: Run) -> None:
    """It is said why."""
    run.tests("""
    @pytest.fixture(scope="module")
    def base():
        pass

    @pytest.mark.isolated(snapshot="module")
    def test_it(base):
        assert 0
    """)
    with session(run) as one:
        assert not one.ids
        assert "nsisolate: not kept (the sandbox of a test with a snapshot" in one.result.out
        assert "test_it.py::test_it" in one.result.out.split("not kept")[1]


def test_without_namespaces(run: Run) -> None:
    from helpers.crippled import COMMON, NO_USER_NAMESPACES

    run.tests("def test_it(): assert 0")
    prefix = (sys.executable, "-c", COMMON + NO_USER_NAMESPACES)
    result = run("--ns-isolate", "--ns-missing=fork", "--ns-keep=failed", prefix=prefix)
    said = "nsisolate: not kept (without namespaces there is no sandbox): test_it.py::test_it"
    assert said in result.out.splitlines()


@pytest.mark.needs("cgroup1", "root")
def test_limits_stay_in_force(run: Run) -> None:
    """The control group lives as long as the sandbox; a sweep leaves it alone."""
    run.tests("""
    @pytest.mark.isolated(memory="64M", pids=20)
    def test_bad():
        subprocess.Popen(["sleep", "4461"])
        assert 0

    @pytest.mark.isolated(memory="64M")
    def test_good():
        pass
    """)
    with session(run) as one:
        groups = Commands(path=run.path, marker=one.running.marker).cgroups_of("sleep 4461")
        assert len(groups) >= 2
        folders = [next(path.glob("test-*")) for path in groups]
        limits = [path / "memory.limit_in_bytes" for path in folders]
        assert [one.read_text() for one in limits if one.exists()] == [f"{64 << 20}\n"]
        assert all(len(list(path.glob("test-*"))) == 1 for path in groups)
        assert one.commands("gc").returncode == 0
        assert still_there(groups) == list(groups)
        assert one.runs("sleep", "4461")
        assert one.commands("gc", one.id).returncode == 0
        assert not still_there(groups)
        one.ids.clear()


@pytest.mark.needs("cgroup1", "root")
def test_fork_bomb(run: Run) -> None:
    """Its sandbox is kept, and the bomb is not."""
    run.tests("""
    @pytest.mark.isolated(pids=20)
    def test_bomb():
        open("/tmp/left", "w").close()
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """)
    with session(run) as one:
        assert "test_bomb (too many processes): nsisolate enter" in one.result.out
        assert one.enter("ls", "/tmp/left") == "/tmp/left\n"
        lines = one.commands("ps").stdout.splitlines()
        (at,) = [n for n, line in enumerate(lines) if line.startswith(one.id)]
        assert lines[at + 1].strip() == "nothing runs in it"


def test_overlay(run_as_each: Run) -> None:
    """What the test wrote there is to be seen, in there alone."""
    run_as_each.tests("""
    @pytest.mark.isolated(profile="hermetic")
    def test_bad():
        with open("written", "w") as file:
            file.write("inside")
        assert 0
    """)
    with session(run_as_each) as one:
        assert one.enter("sh", "-c", "cat written; cd; pwd") == "inside/tmp/home\n"
        assert not (run_as_each.path / "written").exists()


def test_nobody_to_take_over(run: Run) -> None:
    """Nothing is kept then, that is said, and nothing is left."""
    run.tests(LEAVES)
    run.write(
        "conftest.py",
        """
        import subprocess
        import sys
        from types import SimpleNamespace

        from pytest_nsisolate.runner.kept import custodian

        def start(module, *arguments, **options):
            code = "import sys; sys.exit('no custodian today')"
            return subprocess.Popen([sys.executable, "-c", code], **options)

        custodian.bare_process = SimpleNamespace(start=start)
        """,
    )
    result = run("--ns-isolate", "--ns-keep=failed")
    said = "nsisolate: not kept (nobody could take them over: no custodian today): "
    assert f"{said}test_it.py::test_bad" in result.out.splitlines()


def test_xdist(run: Run) -> None:
    """Each worker keeps its own; the controller says so."""
    pytest.importorskip("xdist")
    run.plugins = ("nsisolate", "xdist")
    run.tests("""
    @pytest.mark.parametrize("n", range(4))
    def test_it(n):
        assert 0
    """)
    with session(run, "-n2") as one:
        assert len(one.ids) == 4
        for name in one.ids:
            assert one.commands("enter", name, "true").returncode == 0


def test_nobody_waits_for_the_output(run: Run) -> None:
    """No process that outlives the session has its output open, or its directory."""
    run.tests(LEAVES)
    with session(run) as one:
        outputs = {str(one.running.out), str(one.running.err)}
        pids = marked(one.running.marker)
        assert len(pids) >= 4
        for pid in pids:
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                assert os.readlink(fd) not in outputs, proc_bytes(pid, "cmdline")


def test_nothing_without_the_option(run: Run) -> None:
    """Neither in the runner nor in a test is anything of it imported."""
    run.tests("""
    def loaded():
        names = ("runner.kept.policy", "runner.kept.custodian", "runner.kept.registry",
                 "runner.kept.live", "cli.enter")
        return [name for name in names if "pytest_nsisolate." + name in sys.modules]

    def test_inside():
        assert loaded() == []

    @pytest.mark.isolated(False)
    def test_outside():
        assert loaded() == []
    """)
    assert "kept" not in run.isolated().expect(passed=2).out


# the end


def test_time_limit(run_as_each: Run) -> None:
    """It ends by itself, and all of it."""
    run_as_each.tests(LEAVES)
    with session(run_as_each, "-o", "nsisolate_keep_limit=1s") as one:
        assert "1 sandbox kept for 1 s" in one.result.out
        one.wait_gone()
        wait_unlisted(one.commands, one.id)
        one.ids.clear()


def test_one_after_the_other(run: Run) -> None:
    """What is left when one has ended lives on."""
    run.tests("""
    @pytest.mark.parametrize("n", range(2))
    def test_it(n):
        assert 0
    """)
    with session(run) as one:
        first, second = one.ids
        assert one.commands("gc", first).returncode == 0
        assert not listed(one.commands, first)
        assert one.commands("enter", second, "true").returncode == 0
        one.ids.remove(first)


def test_runner_killed(run_as_each: Run) -> None:
    """Before its session has ended nothing is kept yet."""
    fifo = run_as_each.path / "running"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    run_as_each.tests("""
    def test_bad():
        subprocess.Popen(["sleep", "4471"])
        assert 0

    def test_waits():
        open("running", "w").close()
        signal.pause()
    """)
    running = run_as_each.start("--ns-isolate", "--ns-keep=failed")
    try:
        running.reached(fifo)
        pids = marked(running.marker)
        assert any(b"4471" in proc_bytes(pid, "cmdline") for pid in pids)
        running.process.kill()
        running.process.wait()
        left = wait_gone(running.marker)
        assert not left, f"left running: {left}"
    finally:
        running.kill()


def test_custodian_killed(run_as_each: Run) -> None:
    """All that it held ends, and is forgotten."""
    run_as_each.tests(LEAVES)
    with session(run_as_each) as one:
        os.kill(one.custodian(), signal.SIGKILL)
        one.wait_gone()
        assert not listed(one.commands, one.id)
        one.ids.clear()


def test_sandbox_ends_by_itself(run: Run) -> None:
    """Its PID 1 is killed from outside: it is no longer listed, and the rest ends as well."""
    run.tests(LEAVES)
    with session(run) as one:
        # PID 1 of the sandbox; the keeper is that of its own namespace.
        (first,) = one.running.init_of_sleeper("4444")
        os.kill(first, signal.SIGKILL)
        one.wait_gone()
        wait_unlisted(one.commands, one.id)
        one.ids.clear()


def test_lost_in_the_session(run: Run) -> None:
    """The keeper is killed: what was to be kept until then is gone, and that is said."""
    os.mkfifo(run.path / "running")
    run.tests("""
    def test_bad():
        assert 0

    def test_waits():
        open("running", "w").close()
        signal.pause()
    """)
    running = run.start("--ns-isolate", "--ns-keep=failed")
    try:
        running.reached(run.path / "running")
        (keeper,) = running.descendants("keeper")
        os.kill(keeper, signal.SIGKILL)
        result = running.wait()
        assert not wait_gone(running.marker)
    finally:
        running.kill()
    said = "nsisolate: not kept (the keeper of this session was killed): test_it.py::test_bad"
    assert said in result.out


@pytest.mark.needs("root", "unprivileged")
def test_all_of_a_user(run_as_nobody: Run) -> None:
    """``gc --all`` ends each of the caller's; nobody else's."""
    run = Run(path=run_as_nobody.path, uid=200_000 + os.getpid())
    os.chown(run.path, 200_000 + os.getpid(), -1)
    run.tests("""
    @pytest.mark.parametrize("n", range(3))
    def test_it(n):
        assert 0
    """)
    with session(run) as one, session(run_as_nobody_again(run_as_nobody)) as other:
        assert len(one.ids) == 3
        done = one.commands("gc", "--all")
        assert done.returncode == 0, done.stdout
        for name in one.ids:
            assert f"ended {name}, the sandbox of test_it.py::test_it[" in done.stdout
            assert not listed(one.commands, name)
        one.wait_gone()
        one.ids.clear()
        for name in other.ids:
            assert other.commands("enter", name, "true").returncode == 0


def run_as_nobody_again(run: Run) -> Run:
    """Runs in a directory of their own, as that user."""
    path = run.path / "again"
    path.mkdir()
    assert run.uid is not None
    os.chown(path, run.uid, run.uid)
    run.path.chmod(0o755)
    shutil.copy(run.path / "test_it.py", path)
    return Run(path=path, uid=run.uid)


# who may


@pytest.mark.needs("root", "unprivileged")
def test_root_enters_those_of_others(run_as_nobody: Run) -> None:
    """As the user whose it is; that user sees nothing of root's."""
    run_as_nobody.tests(LEAVES)
    with session(run_as_nobody) as one:
        assert run_as_nobody.uid is not None
        root = Commands(path=Path("/"))
        done = root("enter", one.id, "sh", "-c", "id -u; cat /tmp/left; touch /tmp/made")
        assert (done.returncode, done.stdout) == (0, f"{run_as_nobody.uid}\nbehind")
        assert listed(root, one.id)
        assert one.enter("stat", "-c", "%u", "/tmp/made") == f"{run_as_nobody.uid}\n"


@pytest.mark.needs("root", "unprivileged")
def test_others_do_not_enter_those_of_root(run: Run) -> None:
    run.tests(LEAVES)
    with session(run) as one:
        other = Commands(path=Path("/"), uid=65534)
        assert not listed(other, one.id)
        for words in (("enter", one.id, "true"), ("gc", one.id)):
            done = other(*words)
            assert done.returncode == (125 if words[0] == "enter" else 1)
            assert f"there is no {'kept ' * (words[0] == 'gc')}sandbox {one.id}" in (
                done.stdout + done.stderr
            )
        assert one.runs("sleep", "4444")


def test_register_is_private(run: Run) -> None:
    """The file has the environment in it."""
    from pytest_nsisolate.core import locks

    run.tests(LEAVES)
    with session(run) as one:
        paths = [Path(place, f"{one.id}.kept") for place in locks.directories()]
        (path,) = [path for path in paths if path.exists()]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_sandbox_that_runs(run: Run) -> None:
    """It is listed by the pid of its PID 1, and entered by it, without the test noticing."""
    fifo, gate = run.path / "running", run.path / "gate"
    os.mkfifo(fifo)
    os.mkfifo(gate)
    run.tests("""
    def test_waits():
        child = subprocess.Popen(["sleep", "4481"])
        open("/tmp/mine", "w").close()
        with open("gate", "r+b", buffering=0) as gate:
            open("running", "w").close()
            gate.read(1)
        child.kill()
        child.wait()
    """)
    running = run.start("--ns-isolate")
    try:
        running.reached(fifo)
        (first,) = running.init_of_sleeper("4481")
        commands = Commands(path=run.path)
        lines = commands("ps").stdout.splitlines()
        (line,) = [line for line in lines if line.startswith(f"{first} ")]
        assert f"process {running.process.pid} runs" in line
        done = commands("enter", str(first), "ls", "/tmp/mine")
        assert (done.returncode, done.stdout) == (0, "/tmp/mine\n")
        assert commands("gc", str(first)).returncode == 1
        gate.write_bytes(b"x")
        running.wait().expect(passed=1)
        assert not wait_gone(running.marker)
    finally:
        running.kill()


# the terminal


def test_shell_on_a_terminal(run_as_each: Run) -> None:
    """It has job control and Ctrl-C, and its exit status is the caller's."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    run_as_each.tests(LEAVES)
    with session(run_as_each) as one:
        words = [*PROGRAM, "enter", one.id]
        with screen(one.commands, *words, env={"SHELL": shell}) as terminal:
            terminal.type("PS1='in:'; unset PROMPT_COMMAND\n")
            terminal.expect("\nin:")
            terminal.type("echo $(hostname)-$(cat /tmp/left)\n")
            terminal.expect("isolated-behind")
            terminal.type("sleep 4491\n")
            wait_for_command(one, "4491")
            terminal.type("\x03")
            terminal.expect("in:")
            terminal.type("echo code=$?\n")
            terminal.expect("code=130")
            terminal.type("sleep 4492\n")
            wait_for_command(one, "4492")
            terminal.type("\x1a")
            terminal.expect("Stopped")
            terminal.expect("in:")
            terminal.type("exit 3\n")
            terminal.expect("There are stopped jobs")
            terminal.expect("in:")
            terminal.type("exit 3\n")
            assert terminal.process.wait(DEADLINE) == 3


def wait_for_command(one: Session, number: str) -> None:
    """Wait until the shell has started a sleep for so long."""
    end = time.monotonic() + DEADLINE
    while not one.runs("sleep", number):
        assert time.monotonic() < end
        time.sleep(0.01)


# mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--ns-keep=some",), "option --ns-keep: keep='some' is not allowed; allowed: none, "),
        (("-o", "nsisolate_keep_limit=soon"), "ini nsisolate_keep_limit: 'soon' is not allowed"),
        (("-o", "nsisolate_keep_limit=0"), "a time above 0"),
        (("-o", "nsisolate_keep_limit=90d"), "up to 30d"),
    ],
)
def test_wrong_options(run: Run, args: tuple[str, ...], said: str) -> None:
    run.tests("def test_it(): pass")
    result = run("--ns-isolate", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("enter",), 2, "required: ID"),
        (("enter", "bcdfgh", "true"), 125, "there is no sandbox bcdfgh that you may enter"),
        (("enter", "1"), 125, "there is no sandbox 1 that you may enter"),
        (("enter", "../x"), 125, "there is no sandbox ../x that you may enter"),
        (("gc", "bcdfgh"), 1, "there is no kept sandbox bcdfgh"),
        (("gc", "--all", "bcdfgh"), 2, "exclude each other"),
        (("ps", "x"), 2, "not known here: x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = Commands(path=tmp_path)(*words)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
