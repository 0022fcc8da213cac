"""Limits on a host with cgroup v2 alone: as root, as a user with a scope, as one without.

Who runs it decides what is asked; `guest.py` beside it runs it in a guest in each situation, and
says by NSISOLATE_VM which one it is:

    root        in a service of the system's
    delegated   a user, in a scope got by ``systemd-run --user --scope -p Delegate=yes``
    asked       a user in a login session: the user's systemd is asked for a scope
    refused     a user without a login session and without a systemd: none can be had
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.cgroup_programs import BUSY, DIRECT, FILL, FORKS, JOIN, run, start
from helpers.hosts import DEADLINE, wait_end
from pytest_nsisolate.cgroups import delegation
from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.cgroups.session import Session, sweep
from pytest_nsisolate.core import locks
from pytest_nsisolate.core.linux import kernel_files
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.explain.explain import explain
from pytest_nsisolate.spec.limits import LimitError, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SITUATION = os.environ.get("NSISOLATE_VM", "")
REFUSED = SITUATION == "refused"
ROOT = os.geteuid() == 0
USUAL = frozenset({"memory", "pids", "cpu"})

able = pytest.mark.skipif(REFUSED, reason="limits can't be had here, on purpose")
root = pytest.mark.skipif(not ROOT, reason="for root")


@pytest.fixture
def session() -> Iterator[Session]:
    one = Session(USUAL | {"cpuset", "io", "devices"})
    assert one.layout.backend == "v2"
    yield one
    directories = [part.directory for part in one.parts]
    assert one.close() == []
    assert not any(map(os.path.exists, directories))


def need(session: Session, controller: str) -> None:
    """Skip where this user has not got the controller; memory, pids and cpu are always there."""
    if controller in session.errors:
        assert controller not in USUAL, session.errors[controller]
        pytest.skip(str(session.errors[controller]))


@pytest.mark.skipif(not REFUSED, reason="limits can be had here")
def test_refusal_names_the_command(session: Session) -> None:
    with pytest.raises(LimitError) as caught:
        session.group(Limits(memory=64 * MIB))
    assert caught.value.errno in (errno.EACCES, errno.EBUSY)
    assert "systemd-run --user --scope -p Delegate=yes" in explain(caught.value).mend


@able
def test_the_usual_controllers_are_there(session: Session) -> None:
    assert not USUAL & session.errors.keys()
    (part,) = session.parts
    assert session.parts[0].controllers >= USUAL
    base = os.path.dirname(part.directory)
    if os.path.exists(base + "/cgroup.type"):
        assert cgroup_layout.processes(base) == []


@able
def test_a_scope_holds_this_process_alone(session: Session) -> None:
    if not delegation.systemd_runs():
        pytest.skip("systemd is asked")
    base = os.path.dirname(session.parts[0].directory)
    assert delegation.is_delegated(base)
    assert os.stat(base).st_uid == os.geteuid()
    ours = os.path.basename(base).startswith("nsisolate-")
    assert ours == (SITUATION != "delegated"), "a scope that is there is made use of"


def own() -> str:
    (unified,) = cgroup_layout.find().hierarchies
    return unified.own


@able
def test_runner_is_in_a_leaf_and_given_back() -> None:
    Session(USUAL).close()
    before = own()
    with Session(USUAL) as one:
        assert own() == f"{before}/{delegation.LEAF}"
        assert cgroup_layout.processes(before) == []
        with Session(USUAL) as two:
            assert os.path.dirname(two.parts[0].directory) == before
        assert own() == f"{before}/{delegation.LEAF}", "there is one that needs it"
        one.end(one.group(Limits(memory=64 * MIB)))
    assert own() == before
    assert cgroup_layout.children(before) == []
    assert kernel_files.read(before + "/cgroup.subtree_control") == ""


@able
@pytest.mark.parametrize("source", FILL.values(), ids=FILL)
def test_out_of_memory(session: Session, source: str) -> None:
    done = run(session, Limits(memory=64 * MIB), source)
    assert done.status == -signal.SIGKILL, "memory.oom.group ends all of it"
    assert done.oom_kills >= 1
    if done.usage.peak_memory is not None:
        assert 60 * MIB <= done.usage.peak_memory <= 64 * MIB


@able
def test_too_many_processes(session: Session) -> None:
    done = run(session, Limits(pids=20), FORKS)
    assert done.out == "20 EAGAIN\n"
    assert done.pids_denied >= 1


@able
def test_swap_is_off(session: Session) -> None:
    """The guest has swap, so that memory that doesn't fit would go there."""
    if "SwapTotal:              0 kB" in (kernel_files.read("/proc/meminfo") or ""):
        pytest.skip("no swap here")
    source = """
        x = bytearray(48 << 20)
        y = bytearray(48 << 20)
        print("there was swap")
    """
    done = run(session, Limits(memory=64 * MIB), source)
    assert (done.status, done.out) == (-signal.SIGKILL, "")


@able
def test_memory_that_fits_and_its_peak(session: Session) -> None:
    limits = Limits(memory=200 * MIB)
    empty = run(session, limits, "").usage
    done = run(session, limits, "x = bytearray(100 << 20)")
    assert (done.status, done.oom_kills) == (0, 0)
    assert empty.peak_memory is not None
    assert done.usage.peak_memory is not None
    assert 100 * MIB <= done.usage.peak_memory - empty.peak_memory <= 115 * MIB, (empty, done)
    assert not done.usage.sampled & {"peak_memory"}


@able
def test_a_neighbour_survives(session: Session) -> None:
    neighbour = session.group(Limits(memory=64 * MIB))
    process = start(neighbour, "print('up', flush=True)\ntime.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    assert run(session, Limits(memory=64 * MIB), FILL["in C"]).oom_kills >= 1
    assert neighbour.oom_kills() == 0
    assert neighbour.processes() == [process.pid]
    assert neighbour.kill()
    process.communicate()
    session.end(neighbour)


@able
@pytest.mark.parametrize(("cpus", "least", "most"), [(0.25, 3.4, 4.6), (1, 0.95, 1.6)])
def test_cpu(session: Session, cpus: float, least: float, most: float) -> None:
    """1 s of CPU: the time that it takes."""
    source = BUSY.format(1.0) + "    print(time.monotonic() - before)"
    done = run(session, Limits(cpus=cpus), "    before = time.monotonic()\n" + source)
    assert least <= float(done.out) <= most
    assert done.usage.cpu_user is not None
    assert done.usage.cpu_system is not None
    assert 1.0 <= done.usage.cpu_user + done.usage.cpu_system <= 1.5


@able
def test_weights_share_one_cpu(session: Session) -> None:
    groups = [session.group(Limits(cpu_weight=weight)) for weight in (100, 300)]
    spin = "os.sched_setaffinity(0, {0})\nprint(flush=True)\nwhile True: pass"
    running = [start(group, spin) for group in groups]
    for one in running:
        assert one.stdout is not None
        one.stdout.readline()
    first = [group.usage().cpu_user or 0.0 for group in groups]
    time.sleep(4)
    for group in groups:
        assert group.freeze()
    spent = [
        (group.usage().cpu_user or 0.0) - before
        for group, before in zip(groups, first, strict=True)
    ]
    for group, one in zip(groups, running, strict=True):
        assert group.kill()
        one.communicate()
        session.end(group)
    assert 3 * 0.85 <= spent[1] / spent[0] <= 3 * 1.15, spent


@able
def test_cpuset(session: Session) -> None:
    need(session, "cpuset")
    last = max(os.sched_getaffinity(0))
    done = run(session, Limits(cpuset=str(last)), "print(os.sched_getaffinity(0))")
    assert done.out == f"{{{last}}}\n"


@able
def test_a_cpu_that_is_not_there(session: Session) -> None:
    need(session, "cpuset")
    with pytest.raises(LimitError) as caught:
        session.group(Limits(cpuset="0,4000"))
    assert caught.value.errno == errno.EINVAL


@able
def test_io_is_set_for_the_disk_of_root(session: Session) -> None:
    need(session, "io")
    group = session.group(Limits(io={"wbps": 4 * MIB}))
    assert f"wbps={4 * MIB}" in (kernel_files.read(group.directories[0] + "/io.max") or "")
    session.end(group)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """/tmp may be in memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        assert os.stat(path).st_dev == os.stat("/").st_dev
        yield Path(path)


@able
def test_io_holds_on_a_direct_write(session: Session, on_disk: Path) -> None:
    need(session, "io")
    source = DIRECT.replace("sys.argv[2]", repr(str(on_disk / "data")))
    free = run(session, Limits(io={"wbps": 1 << 40}), source)
    assert float(free.out) < 0.5
    done = run(session, Limits(io={"wbps": 2 * MIB}), source)
    assert 2 * 0.8 <= float(done.out) <= 2 * 1.2
    assert done.usage.io_written is not None
    assert 4 * MIB <= done.usage.io_written <= 5 * MIB


@able
def test_weights_of_disks_are_never_dropped_silently(session: Session) -> None:
    need(session, "io")
    with pytest.raises(LimitError) as caught:
        session.group(Limits(io_weight=200))
    assert (caught.value.controller, caught.value.errno) == ("io", errno.EOPNOTSUPP)
    assert "bfq" in explain(caught.value).mend


COUNT = """
    print("up", flush=True)
    while True:
        os.write(1, b".")
        time.sleep(0.001)
"""


@able
def test_freeze_thaw_and_kill(session: Session) -> None:
    group = session.group(Limits(memory=64 * MIB))
    process = start(group, COUNT)
    assert process.stdout is not None
    process.stdout.readline()
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    assert group.freeze()
    assert group.processes() == [process.pid]
    with contextlib.suppress(BlockingIOError):
        while os.read(pipe, 4096):
            pass
    assert not select.select([pipe], [], [], 0.2)[0]
    group.thaw()
    assert select.select([pipe], [], [], 10)[0]
    assert group.freeze()
    assert group.kill(), "what is frozen is killed all the same"
    process.wait()
    process.stdout.close()
    assert group.remove(), "and then it can be removed at once"


@able
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
    process.stdout.readline()
    deadline = time.monotonic() + 20
    while not group.pids_denied() and time.monotonic() < deadline:
        time.sleep(0.01)
    before = time.monotonic()
    assert group.kill()
    assert time.monotonic() - before < 2
    process.communicate()
    assert group.pids_denied() >= 1
    assert group.usage().pids_peak in (30, None)
    session.end(group)


@able
def test_join_from_other_namespaces(session: Session) -> None:
    """The rights of who opened the files count, and 0 is the writer in any pid namespace."""
    group = session.group(Limits(memory=64 * MIB))
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
    assert pid != process.pid
    process.communicate(b"x")
    session.end(group)


@able
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


KILLED = """
import os, signal, subprocess
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.spec.limits import Limits
one = Session(frozenset({"memory"}))
group = one.group(Limits(memory=64 << 20))
sleeper = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
group.add(sleeper.pid)
assert group.freeze()
print(sleeper.pid, one.parts[0].directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@able
@pytest.mark.parametrize("by", ["sweep", "next session"])
def test_killed_with_a_frozen_group(by: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid, directory = done.stdout.split()
    assert os.path.isdir(directory), "it is frozen, so it is there"
    if by == "sweep":
        assert sweep() == [directory]
    else:
        assert Session(USUAL).close() == []
    assert not os.path.exists(directory)
    assert wait_end(int(pid), DEADLINE)


@able
def test_two_sessions_at_once(session: Session) -> None:
    with Session(USUAL) as second:
        assert not second.errors
        assert second.slot is not None
        assert session.slot is not None
        assert second.slot.number != session.slot.number
        groups = [one.group(Limits(memory=64 * MIB)) for one in (session, second)]
        for one, group in zip((session, second), groups, strict=True):
            one.end(group)
    session.end(session.group(Limits(memory=64 * MIB)))


ONCE = """
import os
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.spec.limits import Limits
with Session(frozenset({"memory", "pids", "cpu"})) as one:
    assert not one.errors, one.errors
    one.end(one.group(Limits(memory=64 << 20, cpus=0.5, pids=5)))
    print(os.path.dirname(one.parts[0].directory))
"""


@able
def test_nothing_is_left_of_a_process_that_ended() -> None:
    """A scope that it asked for goes with it."""
    scopes = []
    for _ in range(2):
        command = [sys.executable, "-c", ONCE]
        scopes.append(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True))
    for one in scopes:
        base = one.stdout.strip()
        if not os.path.basename(base).startswith("nsisolate-"):
            continue
        deadline = time.monotonic() + 10
        while os.path.exists(base) and time.monotonic() < deadline and base not in own():
            time.sleep(0.05)
        assert not os.path.exists(base) or base in own()
    for path in locks.directories():
        assert not os.path.exists(path)


# without systemd, as in a container or where another init runs

CONTAINED = """
mount -t tmpfs none /run/systemd
{mount}
exec "$0" -c "$1"
"""
INSIDE = """
import os, sys
from pytest_nsisolate.cgroups import delegation, layout
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.core.linux import kernel_files
from pytest_nsisolate.spec.limits import Limits
assert not delegation.systemd_runs()
before = layout.find().hierarchies[0].own
with Session(frozenset({"memory", "pids", "cpu"})) as one:
    assert not one.errors, one.errors
    (part,) = one.parts
    group = one.group(Limits(memory=64 << 20, cpus=0.5, pids=5))
    print(part.directory, (kernel_files.read(group.directories[0] + "/memory.max") or "").strip())
    one.end(group)
    inside = layout.find().hierarchies[0].own
assert layout.find().hierarchies[0].own == before
print(before, inside)
"""


def contained(cgroup: str, mount: str, *options: str) -> list[str]:
    """What `INSIDE` says, run in that cgroup, in a mount namespace without systemd."""
    script = CONTAINED.format(mount=mount)

    def move() -> None:
        cgroup_layout.write(cgroup + "/cgroup.procs", "0")

    done = subprocess.run(
        ["unshare", "-m", *options, "sh", "-c", script, sys.executable, INSIDE],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=move,
    )
    return done.stdout.split()


@pytest.fixture
def box() -> Iterator[str]:
    path = "/sys/fs/cgroup/nsisolate-box"
    cgroup_layout.make(path)
    yield path
    assert cgroup_layout.children(path) == []
    assert cgroup_layout.remove(path, time.monotonic() + 5)


@root
def test_in_a_container(box: str) -> None:
    """All that the mount shows is the container's, also if it isn't the hierarchy's root."""
    mount = "umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
    directory, limit, before, inside = contained(box, mount, "-C")
    assert directory == "/sys/fs/cgroup/nsisolate-0-0"
    assert limit == str(64 * MIB)
    assert (before, inside) == ("/sys/fs/cgroup", f"/sys/fs/cgroup/{delegation.LEAF}")


@root
def test_without_systemd(box: str) -> None:
    directory, _, before, inside = contained(box, "")
    assert directory == f"{box}/nsisolate-0-0"
    assert (before, inside) == (box, f"{box}/{delegation.LEAF}")


@root
def test_at_the_root_of_the_hierarchy() -> None:
    """It may have processes and controllers both."""
    directory, _, before, inside = contained("/sys/fs/cgroup", "")
    assert directory == "/sys/fs/cgroup/nsisolate-0-0"
    assert before == inside == "/sys/fs/cgroup"
