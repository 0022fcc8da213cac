"""Real cgroups of this host: limits hold, use is measured, and nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from helpers.cgroup_programs import BUSY, DIRECT, FILL, FORKS, JOIN, OPEN, run, start
from helpers.hosts import DEADLINE, NOBODY, become, wait_end
from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.cgroups.session import Session, sweep
from pytest_nsisolate.core.linux import kernel_files
from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.explain.explain import explain
from pytest_nsisolate.sandbox.join import join_cgroups
from pytest_nsisolate.spec.limits import LimitError, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MIB = 1 << 20
ALL = frozenset({"memory", "cpu", "pids", "cpuset", "devices", "io"})

pytestmark = pytest.mark.needs("cgroup1")


def layout(version: int) -> cgroup_layout.Layout:
    """The hierarchies of that version alone."""
    found = cgroup_layout.find().hierarchies
    return cgroup_layout.Layout(tuple(one for one in found if one.version == version))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    one = Session(ALL, layout=layout(1), runtime=str(tmp_path / "slots"))
    assert not one.errors
    directories = [part.directory for part in one.parts]
    yield one
    assert one.close() == []
    assert not any(map(os.path.exists, directories))
    assert not (tmp_path / "slots").exists()


# memory


@pytest.mark.parametrize("source", FILL.values(), ids=FILL)
def test_out_of_memory(session: Session, source: str) -> None:
    done = run(session, Limits(memory=64 * MIB), source)
    assert done.oom_kills >= 1
    assert done.status == -signal.SIGKILL or done.out == f"{int(signal.SIGKILL)}\n"
    assert done.usage.peak_memory is not None
    assert 60 * MIB <= done.usage.peak_memory <= 64 * MIB


def test_within_the_limit_and_peak(session: Session) -> None:
    limits = Limits(memory=200 * MIB)
    empty = run(session, limits, "").usage.peak_memory
    done = run(session, limits, "x = bytearray(100 << 20)")
    assert (done.status, done.oom_kills) == (0, 0)
    assert empty is not None
    assert done.usage.peak_memory is not None
    assert 100 * MIB <= done.usage.peak_memory - empty <= 115 * MIB


def test_memory_is_charged_from_the_first_page(session: Session) -> None:
    """Joined before it allocates, a fork counts what it adds and not what it shares."""
    with contextlib.closing(memory := _Held(32 * MIB)):
        done = run(session, Limits(memory=64 * MIB), "print(1)")
        assert memory.size == 32 * MIB
    assert done.usage.peak_memory is not None
    assert done.usage.peak_memory < 8 * MIB


class _Held:
    """Memory of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def close(self) -> None:
        self.data = bytearray()


# processes


def test_too_many_processes(session: Session) -> None:
    done = run(session, Limits(pids=20), FORKS)
    assert done.out == "20 EAGAIN\n"
    assert done.pids_denied >= 1
    assert done.usage.pids_peak in (20, None)


def test_fork_bomb_ends_when_it_is_killed(session: Session) -> None:
    group = session.group(Limits(pids=30))
    bomb = """
        print("up", flush=True)
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    process = start(group, bomb)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    deadline = time.monotonic() + DEADLINE
    while not group.pids_denied() and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    before = time.monotonic()
    assert group.kill()
    assert time.monotonic() - before < 2
    process.communicate()
    assert group.processes() == []
    assert group.pids_denied() >= 1
    session.end(group)


# CPU


def test_cpu_quota_and_accounting(session: Session) -> None:
    """0.3 s of CPU at a quarter of one."""
    done = run(session, Limits(cpus=0.25), BUSY.format(0.3))
    assert 0.7 < done.wall < 6
    assert done.usage.cpu_user is not None
    assert done.usage.cpu_system is not None
    assert 0.28 <= done.usage.cpu_user + done.usage.cpu_system <= 0.6


def test_cpu_of_children_that_nobody_waited_for(session: Session) -> None:
    source = f"""
    if os.fork() == 0:
        {BUSY.format(0.2).strip().replace(chr(10), chr(10) + "    ")}
        os._exit(0)
    time.sleep(0.01)
    """
    group = session.group(Limits(cpus=1))
    process = start(group, source)
    process.communicate(timeout=DEADLINE)  # the pipe ends with the last of them
    usage = group.usage()
    assert usage.cpu_user is not None
    assert usage.cpu_system is not None
    assert usage.cpu_user + usage.cpu_system >= 0.19
    session.end(group)


def test_weights_share_one_cpu(session: Session) -> None:
    groups = [session.group(Limits(cpuset="0", cpu_weight=weight)) for weight in (100, 300)]
    running = [start(group, "print(flush=True)\nwhile True: pass") for group in groups]
    for one in running:
        assert one.stdout is not None
        one.stdout.readline()
    first = [group.usage().cpu_user or 0.0 for group in groups]
    select.select([], [], [], 1.0)
    for group in groups:
        group.freeze()
    spent = [
        (group.usage().cpu_user or 0.0) - before
        for group, before in zip(groups, first, strict=True)
    ]
    for group, one in zip(groups, running, strict=True):
        group.kill()
        one.communicate()
        session.end(group)
    assert 2 < spent[1] / spent[0] < 4.5


def test_cpuset(session: Session) -> None:
    done = run(session, Limits(cpuset="0"), "print(os.sched_getaffinity(0))")
    assert done.out == "{0}\n"


# devices and disks


def test_devices(session: Session) -> None:
    done = run(session, Limits(devices=("/dev/null",)), OPEN)
    assert done.out == f"null\n{errno.EPERM}\n"


@pytest.mark.parametrize(("path", "number"), [("/dev/nothing", errno.ENOENT), ("/", errno.ENODEV)])
def test_device_that_is_none(session: Session, path: str, number: int) -> None:
    with pytest.raises(LimitError) as caught:
        session.group(Limits(devices=(path,)))
    assert (caught.value.controller, caught.value.errno, caught.value.path) == (
        "devices",
        number,
        path,
    )


def test_io(session: Session, tmp_path: Path) -> None:
    limits = Limits(io={"wbps": 4 * MIB})
    path = tmp_path / "data"
    if os.stat(tmp_path).st_dev != os.stat("/").st_dev:
        pytest.skip("temporary files are not on the disk of /")
    done = run(session, limits, DIRECT.replace("sys.argv[2]", repr(str(path))))
    path.unlink()
    assert float(done.out) >= 0.7, done.out
    assert done.usage.io_written is not None
    assert done.usage.io_written >= 4 * MIB


def test_weights_of_disks_are_never_dropped_silently(session: Session) -> None:
    """Either this disk goes by weights, or there is a fact that it doesn't."""
    found = None
    try:
        session.end(session.group(Limits(io_weight=200)))
    except LimitError as error:
        found = error
    if found is not None:
        assert (found.controller, found.errno) == ("io", errno.EOPNOTSUPP)
        assert "bfq" in explain(found).mend


# joining, freezing, ending


def test_join_in_a_fork(session: Session) -> None:
    group = session.group(Limits(memory=64 * MIB))
    process = start(group, "print(open('/proc/self/cgroup').read())")
    out, _ = process.communicate()
    where = [line for line in out.splitlines() if ":memory:" in line]
    assert group.directories
    assert any(path.endswith(where[0].split(":")[2]) for path in group.directories)
    session.end(group)


@pytest.mark.needs("sandbox")
def test_join_from_other_namespaces(session: Session) -> None:
    """The rights of who opened the files count, and 0 is the writer in any pid namespace."""
    group = session.group(Limits(memory=64 * MIB, cpus=1))
    fds = group.join_fds()
    source = JOIN + "print('up', flush=True)\nos.read(0, 1)"
    process = subprocess.Popen(
        ["unshare", "-Urpf", "-C", sys.executable, "-c", source, ",".join(map(str, fds))],
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    (pid,) = group.processes()
    assert pid != process.pid, "PID 1's parent, which made the namespaces, stays outside"
    process.communicate(b"x")
    session.end(group)


def test_add_from_outside(session: Session) -> None:
    group = session.group(Limits(pids=4))
    sleeper = subprocess.Popen(["sleep", "60"])
    group.add(sleeper.pid)
    assert group.processes() == [sleeper.pid]
    # It is killed with the group.
    assert group.remove(5)
    assert sleeper.wait() == -signal.SIGKILL


def test_join_of_a_group_that_is_gone(session: Session) -> None:
    group = session.group(Limits(pids=4))
    fds = [os.dup(fd) for fd in group.join_fds()]
    assert group.remove()
    with pytest.raises(StageError) as caught:
        join_cgroups(fds)
    assert caught.value.errno == errno.ENODEV
    for fd in fds:
        os.close(fd)


COUNT = """
    import mmap
    print("up", flush=True)
    while True:
        os.write(1, b".")
        time.sleep(0.001)
"""


def test_freeze_and_thaw(session: Session) -> None:
    group = session.group(Limits(memory=64 * MIB))
    process = start(group, COUNT)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    assert group.freeze()
    with contextlib.suppress(BlockingIOError):
        while os.read(pipe, 4096):
            pass
    assert not select.select([pipe], [], [], 0.05)[0]
    group.thaw()
    assert select.select([pipe], [], [], DEADLINE)[0]
    assert group.freeze()
    assert group.kill(), "what is frozen is killed all the same"
    process.wait()
    process.stdout.close()
    session.end(group)


def test_removed_under_the_run(session: Session) -> None:
    group = session.group(Limits(memory=64 * MIB, cpus=1))
    for path in group.directories:
        os.rmdir(path)
    assert group.usage() == Usage()
    assert (group.oom_kills(), group.pids_denied(), group.processes()) == (0, 0, [])
    assert not group.freeze()
    group.thaw()
    assert group.kill()
    assert group.remove()


def test_session_directory_removed_under_the_run(session: Session) -> None:
    (directory,) = [part.directory for part in session.parts if "memory" in part.controllers]
    os.rmdir(directory)
    with pytest.raises(LimitError) as caught:
        session.group(Limits(memory=64 * MIB))
    assert (caught.value.controller, caught.value.errno) == ("memory", errno.ENOENT)
    assert explain(caught.value).mend
    left = [path for part in session.parts for path in cgroup_layout.children(part.directory)]
    assert left == [], "half a group is no group"


def test_group_that_is_ended_while_processes_run(session: Session) -> None:
    """Processes of a sandbox have been killed by then; any other has a second to go by itself."""
    group = session.group(Limits(pids=4))
    process = start(group, "print('up', flush=True)\ntime.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    session.end(group)
    session.reap()
    assert process.poll() is None
    time.sleep(1.1)
    session.reap()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    process.stdout.close()


# sessions


def test_two_sessions_never_share(session: Session, tmp_path: Path) -> None:
    """Neither by the slots, nor where they don't see each other's slots."""
    for runtime in (tmp_path / "slots", tmp_path / "other"):
        second = Session(ALL, layout=layout(1), runtime=str(runtime))
        mine = {part.directory for part in session.parts}
        assert not mine & {part.directory for part in second.parts}
        assert second.close() == []
        assert all(map(os.path.isdir, mine))


def test_slots_are_reused(tmp_path: Path) -> None:
    numbers = []
    for _ in range(2):
        with Session(frozenset({"pids"}), layout=layout(1), runtime=str(tmp_path / "slots")) as one:
            assert one.slot is not None
            numbers.append(one.slot.number)
    assert numbers[0] == numbers[1]


KILLED = """
import os, signal, subprocess, sys
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.cgroups.layout import Layout, find
from pytest_nsisolate.spec.limits import Limits
layout = Layout(tuple(one for one in find().hierarchies if one.version == 1))
one = Session(frozenset({"memory"}), layout=layout, runtime=sys.argv[1])
group = one.group(Limits(memory=64 << 20))
sleeper = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
group.add(sleeper.pid)
assert group.freeze()
print(sleeper.pid, *[part.directory for part in one.parts], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("by", ["sweep", "next session"])
def test_killed_with_a_frozen_group(tmp_path: Path, by: str) -> None:
    runtime = str(tmp_path / "slots")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, runtime], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid, *directories = done.stdout.split()
    assert all(map(os.path.isdir, directories))
    if by == "sweep":
        # What a process that outlived it holds is let alone, and found again later.
        fd = os.open(directories[0], os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        first = sweep(layout=layout(1), runtime=runtime)
        assert directories[0] not in first
        os.close(fd)
        assert first + sweep(layout=layout(1), runtime=runtime) == [*first, directories[0]]
        assert sorted([*first, directories[0]]) == sorted(directories)
    else:
        assert Session(frozenset({"pids"}), layout=layout(1), runtime=runtime).close() == []
    assert wait_end(int(pid), DEADLINE) or kernel_files.read(f"/proc/{pid}/stat") is None
    assert not any(map(os.path.exists, directories))
    assert not os.path.exists(runtime)


def test_sweep_leaves_the_living_alone(session: Session, tmp_path: Path) -> None:
    group = session.group(Limits(pids=4))
    assert sweep(layout=layout(1), runtime=str(tmp_path / "slots")) == []
    assert all(map(os.path.isdir, group.directories))
    session.end(group)


ASK = """
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.spec.limits import LimitError, Limits
from pytest_nsisolate.explain.explain import explain
with Session(frozenset({"memory"})) as one:
    try:
        one.group(Limits(memory=64 << 20))
    except LimitError as error:
        print(error.controller, error.backend, error.errno, explain(error).mend)
"""


@pytest.mark.needs("root", "unprivileged")
def test_user_without_a_cgroup() -> None:
    done = subprocess.run(
        [*become(NOBODY), sys.executable, "-c", ASK],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"memory v1 {errno.EACCES} sudo cgcreate"), done


# the part of v2 that there is in a hybrid layout, without controllers


@pytest.fixture
def unified(tmp_path: Path, require_capability: object) -> Iterator[Session]:
    assert callable(require_capability)
    require_capability("cgroup2")
    one = Session(
        frozenset({"devices"}),
        welcome=frozenset({"freezer", "cpuacct"}),
        layout=layout(2),
        runtime=str(tmp_path / "slots"),
    )
    yield one
    assert one.close() == []


def test_freeze_and_kill_of_v2(unified: Session) -> None:
    group = unified.group(Limits(devices=("/dev/null",)))
    process = start(group, "print('up', flush=True)\nwhile True: pass")
    assert process.stdout is not None
    process.stdout.readline()
    assert group.freeze()
    assert kernel_files.read_table(f"{group.directories[0]}/cgroup.events")["frozen"] == 1
    group.thaw()
    assert group.freeze()
    assert group.kill()
    process.communicate()
    usage = group.usage()
    assert (usage.cpu_user or 0) + (usage.cpu_system or 0) > 0
    unified.end(group)
