"""Hosts that can't isolate, made here: a command that takes one ability away, then runs another.

Each is a Python source for ``python -c SOURCE COMMAND...``; it changes nothing but the process
it runs in and what that process starts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

COMMON = """
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUSER = 0x20000, 0x10000000
def check(what, result):
    if result:
        sys.exit(f"crippling failed at {what}: {os.strerror(ctypes.get_errno())}")
def unshare(flags):
    uid, gid = os.geteuid(), os.getegid()
    check("unshare", libc.unshare(flags))
    if flags & NEWUSER:
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")
        ):
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(text)
    if flags & NEWNS:
        check("private", libc.mount(b"none", b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
def bind(source, target):
    check(target, libc.mount(source.encode(), target.encode(), None, 0x5000, None))
def seccomp(program):
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    check("no_new_privs", libc.prctl(38, 1, 0, 0, 0))
    check("seccomp", libc.prctl(22, 2, ctypes.byref(Program(len(program), code)), 0, 0))
def done():
    os.execv(sys.argv[1], sys.argv[1:])
"""

# In a user namespace of one's own the limit on further ones can be set to none.
NO_USER_NAMESPACES = """
unshare(NEWUSER)
with open("/proc/sys/user/max_user_namespaces", "w") as stream:
    stream.write("0")
done()
"""

# As above: room for two sandboxes at once.
TWO_NET_NAMESPACES = """
unshare(NEWUSER)
with open("/proc/sys/user/max_net_namespaces", "w") as stream:
    stream.write("2")
done()
"""

# Control groups as on a host with cgroup v2 and nothing else.
CGROUP2_ALONE = """
if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
    unshare(NEWNS if os.geteuid() == 0 else NEWUSER | NEWNS | 0x2000000)  # CLONE_NEWCGROUP
    check("cgroup2", libc.mount(b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None))
done()
"""

# A mount over an entry of /proc is locked in every namespace below, and the kernel then refuses a
# fresh /proc there, which would show what was covered: what container engines do.
MASKED_PROC = """
unshare(NEWUSER | NEWNS)
bind("/dev/null", "/proc/version")
done()
"""

# The filter of container engines: unshare and clone(CLONE_NEWUSER) give EPERM, clone3 ENOSYS.
SECCOMP = """
UNSHARE, CLONE, CLONE3, ARCH = {
    "x86_64": (272, 56, 435, 0xC000003E), "aarch64": (97, 220, 435, 0xC00000B7)
}[platform.machine()]
LOAD, EQUAL, BITS, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
program = [
    (LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCH), (RETURN, 0, 0, ALLOW),
    (LOAD, 0, 0, 0),
    (EQUAL, 4, 0, UNSHARE), (EQUAL, 5, 0, CLONE3), (EQUAL, 0, 3, CLONE),
    (LOAD, 0, 0, 16), (BITS, 0, 1, NEWUSER),
    (RETURN, 0, 0, ERRNO | 1), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | 38),
]
seccomp(program)
done()
"""

# What Linux 5.11 lacks and the package can use: mount_setattr (5.12). Its number is the same
# everywhere.
OLD_KERNEL = """
LOAD, EQUAL, RETURN, ALLOW, ENOSYS = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | 38
seccomp([
    (LOAD, 0, 0, 0), (EQUAL, 1, 0, 442),
    (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ENOSYS),
])
done()
"""

# A kernel without CONFIG_TIME_NS: unshare(CLONE_NEWTIME) gives EINVAL.
NO_TIME_NAMESPACES = """
UNSHARE = {"x86_64": 272, "aarch64": 97}[platform.machine()]
LOAD, EQUAL, BITS, RETURN, ALLOW, EINVAL = 0x20, 0x15, 0x45, 0x06, 0x7FFF0000, 0x00050000 | 22
seccomp([
    (LOAD, 0, 0, 0), (EQUAL, 0, 3, UNSHARE), (LOAD, 0, 0, 16), (BITS, 0, 1, 0x80),
    (RETURN, 0, 0, EINVAL), (RETURN, 0, 0, ALLOW),
])
done()
"""

# A host that lets this user count no events: perf_event_open gives EACCES.
NO_COUNTERS = """
PERF = {"x86_64": 298, "aarch64": 241}[platform.machine()]
LOAD, EQUAL, RETURN, ALLOW, EACCES = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | 13
seccomp([
    (LOAD, 0, 0, 0), (EQUAL, 0, 1, PERF), (RETURN, 0, 0, EACCES), (RETURN, 0, 0, ALLOW),
])
done()
"""

# What container engines do with the host's cgroups.
READONLY_CGROUPS = """
unshare(NEWNS)
for line in open("/proc/self/mountinfo").read().splitlines():
    point = line.split()[4]
    if point.startswith("/sys/fs/cgroup"):
        # MS_REMOUNT | MS_BIND | MS_RDONLY, and noexec, nodev, nosuid
        check(point, libc.mount(b"none", point.encode(), None, 0x1020 | 0xF, None))
done()
"""

# Whoever was chrooted may make no user namespace (create_user_ns in the kernel).
CHROOT = """
unshare(NEWNS)
os.makedirs("newroot", exist_ok=True)
folder = os.getcwd()
bind("/", folder + "/newroot")
os.chroot(folder + "/newroot")
os.chdir(folder)
done()
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host that can't isolate, and what has to be said about it."""

    name: str
    source: str
    error: str
    """The errno that the kernel gives."""
    stage: str
    """A word that names the step which failed."""
    mend: str
    """What a person has to be pointed to."""
    needs: str = "sandbox"

    @property
    def prefix(self) -> list[str]:
        """The command that runs its arguments on this host."""
        return [sys.executable, "-c", COMMON + self.source]


HOSTS = [
    Host(
        name="no user namespaces",
        source=NO_USER_NAMESPACES,
        error="ENOSPC",
        stage="user",
        mend="user.max_user_namespaces",
    ),
    Host(
        name="masked proc",
        source=MASKED_PROC,
        error="EPERM",
        stage="/proc",
        mend="systempaths=unconfined",
    ),
    Host(
        name="seccomp",
        source=SECCOMP,
        error="EPERM",
        stage="user",
        mend="seccomp=unconfined",
    ),
    Host(
        name="chroot",
        source=CHROOT,
        error="EPERM",
        stage="user",
        mend="chroot",
        needs="root",
    ),
]
