"""What this host can do, what runs on it, and how to become a user without privileges."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NOBODY = 65534
DEADLINE = float(os.environ.get("NSISOLATE_DEADLINE", "120"))
"""Seconds after which a run counts as hanging: generous, it only has to be finite."""
GONE_WITHIN = float(os.environ.get("NSISOLATE_GONE_WITHIN", "2"))
"""Seconds in which everything of a session has to vanish once its runner ended."""
NAMESPACES = ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup")
MARKER = "NSISOLATE_TEST_MARKER"


def inherited() -> dict[str, str]:
    """The environment for a run of pytest, without what makes the same run look otherwise."""
    apart = ("PYTEST_", "COV_")
    return {
        name: text
        for name, text in os.environ.items()
        # With the last two, pytest shortens nothing.
        if not name.startswith(apart) and name not in {"CI", "BUILD_NUMBER"}
    }


def proc_bytes(pid: int, name: str) -> bytes:
    """A file of /proc/PID, empty when the process is gone or not ours to look at."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    """The parent of a process, 0 when it is gone."""
    found = re.search(rb"^PPid:\s+(\d+)", proc_bytes(pid, "status"), re.MULTILINE)
    return int(found[1]) if found else 0


def marked(marker: str) -> list[int]:
    """Processes that have the marker in their environment, forked ones included."""
    wanted = f"{MARKER}={marker}".encode()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if wanted in proc_bytes(pid, "environ").split(b"\0")]


def wait_gone(marker: str, seconds: float = GONE_WITHIN) -> list[str]:
    """Wait until no process has the marker; the command lines of those past the deadline."""
    end = time.monotonic() + seconds
    while pids := marked(marker):
        for pid in pids:
            if not wait_end(pid, end - time.monotonic()):
                return [proc_bytes(pid, "cmdline").replace(b"\0", b" ").decode() for pid in pids]
    return []


def wait_end(pid: int, seconds: float) -> bool:
    """Wait for the end of any process, one's child or not; whether it came in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(max(0, int(seconds * 1000))))
    finally:
        os.close(pidfd)


def namespaces(pid: int | str = "self") -> dict[str, int]:
    """The inodes of a process's namespaces, by name."""
    return {name: Path(f"/proc/{pid}/ns/{name}").stat().st_ino for name in NAMESPACES}


def host_state() -> Counter[str]:
    """What no run may add to: mounts, network links, files that carry the plugin's name."""
    mounts = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    folders = [Path(name) for name in ("/tmp", "/var/tmp", "/dev/shm", "/run")]
    return Counter(
        [
            *("mount " + " ".join(line.split()[2:5]) for line in mounts),
            *(f"link {path.name}" for path in Path("/sys/class/net").iterdir()),
            *(
                f"file {path}"
                for folder in folders
                for path in folder.glob("*nsisolate*")
                if not path.name.startswith("nsisolate-nobody-")
            ),
        ]
    )


BECOME = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, data):
    arguments = [text and os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*arguments, flags, data and data.encode()):
        sys.exit(f"mount {target}: {os.strerror(ctypes.get_errno())}")
def closed(folder):
    parts = folder.split("/")
    ancestors = ["/".join(parts[:n]) for n in range(2, len(parts) + 1)]
    return next((path for path in ancestors if not os.stat(path).st_mode & 1), None)
uid = int(sys.argv[1])
needed = [os.path.realpath(path) for path in (sys.base_prefix, sys.prefix)]
if any(closed(path) for path in needed):
    libc.unshare(0x20000)  # CLONE_NEWNS
    mount("none", "/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
for path in needed:
    if wall := closed(path):
        folder = os.open(path, os.O_PATH)
        mount("tmpfs", wall, "tmpfs", 0, "mode=755")
        os.makedirs(path)
        mount(f"/proc/self/fd/{folder}", path, None, 0x1000, None)  # MS_BIND
        os.close(folder)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.execv(sys.argv[2], sys.argv[2:])
"""


def become(uid: int | None) -> list[str]:
    """A command that runs the rest of its arguments as another user; nothing for None.

    An interpreter below a directory that is closed to others is made reachable in a mount
    namespace of the command's own.
    """
    return [] if uid is None else [sys.executable, "-c", BECOME, str(uid)]


@contextlib.contextmanager
def nobody_directory() -> Iterator[tuple[Path, int | None]]:
    """A directory for a user without privileges, and the uid to become: None if this is one."""
    path = Path(tempfile.mkdtemp(prefix="nsisolate-nobody-"))
    uid = NOBODY if os.geteuid() == 0 else None
    try:
        if uid is not None:
            os.chown(path, uid, uid)
        yield path, uid
    finally:
        shutil.rmtree(path)


PROBE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(stage, result):
    if result:
        number = ctypes.get_errno()
        sys.exit(f"{stage}: {os.strerror(number)}")
uid, gid = os.getuid(), os.getgid()
# CLONE_NEWUSER | NEWPID | NEWNS | NEWNET | NEWUTS | NEWIPC | NEWCGROUP
check("unshare", libc.unshare(0x10000000 | 0x20000000 | 0x20000 | 0x40000000 | 0x0E000000))
for name, text in [("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")]:
    try:
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(text)
    except OSError as error:
        sys.exit(f"{name}: {error.strerror}")
child = os.fork()
if not child:
    check("private", libc.mount(b"none", b"/", None, 0x44000, None))
    check("mount /proc", libc.mount(b"proc", b"/proc", b"proc", 0, None))
    check("mount /tmp", libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@functools.cache
def lacks_sandbox() -> str | None:
    """Why a process can't make the namespaces and mounts of a sandbox; None when it can."""
    if sys.platform != "linux":
        return "namespaces are a feature of Linux"
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"


@functools.cache
def lacks_root() -> str | None:
    """Why there is no root here, with the capabilities that make it one."""
    if os.geteuid() != 0:
        return f"running as uid {os.geteuid()}"
    found = re.search(rb"^CapEff:\s+(\w+)", proc_bytes(os.getpid(), "status"), re.MULTILINE)
    has_admin = bool(found and int(found[1], 16) >> 21 & 1)
    return None if has_admin else "uid 0 without CAP_SYS_ADMIN"


@functools.cache
def lacks_unprivileged() -> str | None:
    """Why pytest can't be run by a user without privileges."""
    if os.geteuid() != 0:
        return None
    done = subprocess.run(
        [*become(NOBODY), sys.executable, "-c", "import pytest"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return None if done.returncode == 0 else f"as uid {NOBODY}: {done.stderr.strip()}"


CGROUP = """
import os, re, sys
mounts = open("/proc/self/mountinfo").read()
for line in open("/proc/self/cgroup"):
    number, names, path = line.rstrip("\\n").split(":", 2)
    kind = "cgroup2" if number == "0" else "cgroup"
    if kind != sys.argv[1] or (number != "0" and "memory" not in names.split(",")):
        continue
    for root, point, options in re.findall(
        rf"^\\d+ \\d+ \\S+ (\\S+) (\\S+) .* - {kind} \\S+ (\\S+)$", mounts, re.MULTILINE
    ):
        if (kind == "cgroup2" or "memory" in options.split(",")) and path.startswith(root):
            folder = point + "/" + path[len(root):] + f"/nsisolate-probe-{os.getpid()}"
            os.mkdir(folder)
            os.rmdir(folder)
            sys.exit()
sys.exit(f"no {sys.argv[1]} with memory is mounted that this process is in")
"""


def lacks_cgroup(kind: str) -> str | None:
    """Why this process can't make a cgroup of that kind; None when it can."""
    done = subprocess.run(
        [sys.executable, "-c", CGROUP, kind],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


@functools.cache
def lacks_cgroup1() -> str | None:
    """Why this process can't limit memory by cgroup v1."""
    return lacks_cgroup("cgroup")


@functools.cache
def lacks_cgroup2() -> str | None:
    """Why there is no cgroup v2 to make groups in, with or without controllers."""
    return lacks_cgroup("cgroup2")


LIMITS = """
import sys
from pytest_nsisolate.cgroups.session import Session
from pytest_nsisolate.spec.limits import Limits
from pytest_nsisolate.core.linux.syscalls import StageError
values = {"memory": 1 << 30, "cpus": 1, "pids": 64, "io": {"wbps": 1 << 20}}
limits = Limits(**{key: values[key] for key in sys.argv[1:]})
with Session(limits.controllers()) as session:
    try:
        session.plan(limits)
    except StageError as error:
        sys.exit(str(error))
"""


def lacks_limit(*keys: str) -> str | None:
    """Why this user can't hold tests to these limits, by whichever cgroups there are."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, *keys],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip()


@functools.cache
def lacks_limits() -> str | None:
    """Why this user can't limit memory, CPU and processes."""
    return lacks_limit("memory", "cpus", "pids")


@functools.cache
def lacks_io() -> str | None:
    """Why this user can't limit the I/O of the root's disk."""
    return lacks_limit("io")


@functools.cache
def lacks_perf() -> str | None:
    """Why this user may not count what happens in the kernel."""
    try:
        level = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text("ascii"))
    except OSError as error:
        return str(error)
    allowed = level < 2 or lacks_root() is None
    return None if allowed else f"kernel.perf_event_paranoid = {level}"


@functools.cache
def lacks_tmpfs_attributes() -> str | None:
    """Why a tmpfs takes no attributes of users, which hide directories in an overlay on one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        try:
            os.setxattr(folder, "user.overlay.opaque", b"y")
        except OSError as error:
            return f"an attribute of a directory on /dev/shm: {error.strerror} (before Linux 6.6)"
    return None


@functools.cache
def lacks_native() -> str | None:
    """Why a limit in seconds says nothing here: the processor is emulated."""
    text = Path("/proc/cpuinfo").read_text("utf-8")
    return "the processor is emulated by QEMU" if "QEMU TCG" in text else None


CAPABILITIES: Mapping[str, Callable[[], str | None]] = {
    "sandbox": lacks_sandbox,
    "root": lacks_root,
    "unprivileged": lacks_unprivileged,
    "cgroup1": lacks_cgroup1,
    "cgroup2": lacks_cgroup2,
    "limits": lacks_limits,
    "io": lacks_io,
    "perf": lacks_perf,
    "tmpfs_attributes": lacks_tmpfs_attributes,
    "native": lacks_native,
}
