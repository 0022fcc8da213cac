"""Check what this host can do by trying it: ``nsisolate doctor`` and ``--ns-doctor``."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

from pytest_nsisolate.cgroups import perf_counters
from pytest_nsisolate.core.linux.syscalls import LINUX, StageError
from pytest_nsisolate.explain import explain
from pytest_nsisolate.sandbox import client
from pytest_nsisolate.sandbox.operations.namespaces import flags_without
from pytest_nsisolate.sandbox.operations.plan import PRIVATE, Host, Plan, View, build_operations
from pytest_nsisolate.spec.limits import CONTROLLERS, LimitError, Limits

from . import doctor_network

if TYPE_CHECKING:
    from pytest_nsisolate.cgroups.group import Group
    from pytest_nsisolate.cgroups.session import Session
    from pytest_nsisolate.explain.host_facts import Explanation


def print_report() -> int:
    """Print the report; 0 if everything of the default spec works, else 1."""
    lines, works = examine()
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if works else 1


def examine() -> tuple[list[str], bool]:
    """Return the lines of the report, and whether all of the default spec works."""
    lines = [
        "nsisolate doctor",
        f"  system       {platform.system()} {platform.release()}",
        f"  python       {platform.python_version()} ({sys.executable})",
        f"  user         uid {os.geteuid() if hasattr(os, 'geteuid') else '?'}",
    ]
    error = _try() if LINUX else StageError("unshare", errno.ENOSYS)
    if error is None:
        lines.append("  sandbox      works: user, pid, mnt, net, uts, ipc and cgroup namespaces,")
        lines.append("               private mounts, a fresh /proc and /sys, loopback")
        lines += [f"  {line}" for line in (*_optional(), *_files())]
        lines += [f"  {line}" for line in network()]
        lines += [f"  {line}" for line in limits()]
        lines += [f"  {line}" for line in doctor_network.rows()]
        lines.append("Isolated tests can run here.")
        return lines, True
    found = explain.explain(error)
    lines += [
        f"  sandbox      FAILS at {error}",
        f"  meaning      {found.meaning}",
        f"  mend         {found.mend}",
        "Isolated tests can't run here; --ns-missing says what happens to them.",
    ]
    return lines, False


def _try(view: View = View()) -> StageError | None:  # noqa: B008 -- a frozen value
    """Build one sandbox by the default spec, with this interpreter: profiles attach to binaries."""
    directories = [*PRIVATE, "/dev/mqueue", "/sys/fs/cgroup"]
    host = Host(
        directories=frozenset(path for path in directories if os.path.isdir(path)),
        cgroup2=os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
        hosts_file=False,
        store=False,
    )
    maps = client.IdMaps()
    operations = build_operations(
        share=(),
        hostname="isolated",
        tmpfs=1 << 20,
        groups=maps.gids[0],
        host=host,
        needed=[],
        basetemp=None,
        view=view,
    )
    plan = Plan(flags_without(()), tuple(maps.uids), tuple(maps.gids), operations, view.ground)
    try:
        keeper, built = client.probe(plan)
    except StageError as error:
        return error
    built.end()
    keeper.close()
    return None


def _files() -> list[str]:
    """Try each view of the host's files, and report which work."""
    from pytest_nsisolate.files import views
    from pytest_nsisolate.sandbox.operations.roots import BindTree

    lines = []
    facts = views.Facts.read([], [], None, all_ids=os.geteuid() == 0)
    for fs in ("readonly", "overlay"):
        wish = views.Wish(fs, None, (), (), "private", 1 << 20)
        view = views.make(wish, facts)
        error = _try(view)
        name = f'fs="{fs}"'
        if error is not None:
            found = explain.explain(error)
            lines.append(f"{name:<13} FAILS at {error}")
            lines += [f"  meaning    {found.meaning}", f"  mend       {found.mend}"]
            continue
        lines.append(f"{name:<13} works")
        for one in view.enter:
            if isinstance(one, BindTree):
                lines.append(f"  read-only  {one.path}: {one.why}")
    return lines


def _optional() -> list[str]:
    from shutil import which

    lines = []
    uid = os.geteuid()
    if uid == 0:
        lines.append('user="root"  works: the runner is root, every id is mapped')
    elif which("newuidmap") and which("newgidmap"):
        from pytest_nsisolate.sandbox.operations.namespaces import subordinate_ids

        granted = sum(one.size for one in subordinate_ids("/etc/subuid", uid))
        text = f"works, with {granted} subordinate uids"
        if not granted:
            text = "works with one id (no subordinate uids in /etc/subuid)"
        elif not _maps_subordinate():
            text = "works with one id (newuidmap refuses the ranges in /etc/subuid and /etc/subgid)"
        lines.append(f'user="root"  {text}')
    else:
        lines.append('user="root"  works with one id (no newuidmap: other ids are not mapped)')
    there = os.path.exists("/proc/self/ns/time")
    lines.append(f"clock        {'works' if there else 'FAILS: no time namespaces in this kernel'}")
    return lines


def _maps_subordinate() -> bool:
    keeper = client.Keeper(subordinate=True)
    try:
        return keeper.maps.wide
    finally:
        keeper.close()


def network() -> list[str]:
    """Report what the host has for links to it and for NAT, without changing anything."""
    from shutil import which

    from pytest_nsisolate.network.uplink import nft_nat, user_nat, veth

    lines, told = ["network      forward=[...] works: it takes nothing of the host"], []
    refused = veth.allowed()
    tried = {
        "CAP_NET_ADMIN": (refused, 'net="veth"'),
        "nft": (None if which("nft") else nft_nat.missing_program(), "nat=True as root"),
        "ip_forward": (nft_nat.missing_forwarding(), "nat=True as root"),
    }
    for name in ("pasta", "slirp4netns"):
        error = user_nat.missing() if which(name) else user_nat.not_installed(name)
        tried[name] = (error, "nat=True without root, or instead of the two above")
    for name, (error, use) in tried.items():
        if error is None:
            lines.append(f"  {name:<14} works: {use}")
        else:
            lines.append(f"  {name:<14} FAILS at {error}: no {use}")
            found = explain.explain(error)
            if found not in told:
                told.append(found)
                lines += [f"  meaning        {found.meaning}", f"  mend           {found.mend}"]
    return lines


#: What is tried: a name for the row, and limits.
_TRIED = {
    "memory": Limits(memory=64 << 20),
    "cpu": Limits(cpus=0.5, cpu_weight=50),
    "pids": Limits(pids=16),
    "cpuset": Limits(cpuset=""),  # a CPU that is there
    "io": Limits(io={"rbps": 1 << 30}),
    "io weight": Limits(io_weight=50),
}
#: What has no key: ends and measures go by it where it is there.
_SERVING = {"freezer": "what is to be ended is stopped first", "cpuacct": "CPU time"}


def limits() -> list[str]:
    """Try each limit in a temporary cgroup, and report which can be held here by this user."""
    from pytest_nsisolate.cgroups.session import Session  # Windows can't

    required = frozenset[str]().union(*(one.controllers() for one in _TRIED.values()))
    failures: dict[Explanation, list[str]] = {}
    with Session(required, welcome=frozenset(_SERVING)) as session:
        backend = session.layout.backend
        lines = [f"cgroups      {backend} (for limits; tests without limits need none)"]
        for name, wanted in _TRIED.items():
            keys = ", ".join(key for key in CONTROLLERS if getattr(wanted, key) is not None)
            error = _hold(session, wanted)
            if error is None:
                lines.append(f"  {name:<10} works: {keys}")
            else:
                row = f"  {name:<10} FAILS at {error}: no {keys}"
                failures.setdefault(_grouped(error, failures), []).append(row)
        for name, use in _SERVING.items():
            there = any(name in part.controllers for part in session.parts)
            lines.append(f"  {name:<10} {'works' if there else 'not here, and not needed'}: {use}")
    for found, rows in failures.items():
        lines += [*rows, f"  meaning    {found.meaning}", f"  mend       {found.mend}"]
    return lines + _counters()


def _grouped(error: LimitError, known: dict[Explanation, list[str]]) -> Explanation:
    """Explain *error*; reuse the explanation in *known* with the same meaning, if any."""
    found = explain.explain(error)
    return next((one for one in known if one.meaning == found.meaning), found)


def _hold(session: Session, wanted: Limits) -> LimitError | None:
    """Make a group with a limit and put a process into it; return the error, if any."""
    if wanted.cpuset is not None:
        wanted = Limits(cpuset=str(min(os.sched_getaffinity(0))))
    group = None
    try:
        group = session.group(wanted)
        _join(group)
    except LimitError as error:
        return error
    except StageError as error:
        return LimitError(
            min(wanted.controllers()), session.layout.backend, error.errno, error.path
        )
    finally:
        if group is not None:
            session.end(group)
    return None


def _join(group: Group) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            group.add(process.pid)
        finally:
            process.kill()


def _counters() -> list[str]:
    counted = ""
    with perf_counters.Counters() as counters, contextlib.suppress(OSError):
        counted = ", ".join(counters.values()).replace("_", " ")
    lines = [f"counters     {'works: ' + counted if counted else 'FAILS'}"]
    told: set[Explanation] = set()
    for name, error in counters.errors.items():
        found = explain.explain(error)
        code = errno.errorcode.get(error.errno, str(error.errno))
        lines.append(f"  no {name.replace('_', ' ')}: {code}")
        if found not in told:
            lines += [f"  meaning    {found.meaning}", f"  mend       {found.mend}"]
        told.add(found)
    return lines
