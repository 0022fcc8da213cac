"""The system calls on the path of a session, and the errnos that each is made to fail with."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest_nsisolate

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = str(Path(pytest_nsisolate.__file__).parent)
Arguments = tuple[int, ...]


def lacks_table() -> str | None:
    """Why faults can't be made here: the numbers below are those of one architecture."""
    machine = platform.machine()
    return None if machine == "x86_64" else f"the numbers of system calls on {machine} are unknown"


class Call(NamedTuple):
    """One system call: its number (x86_64), how it may fail, and how a call site is told.

    ``site`` gives what tells one site from another; None is for calls that are not the
    session's own, such as pytest's writes to its terminal.
    """

    number: int
    errnos: tuple[int, ...]
    site: Callable[[int, Arguments], str | None]


NAMESPACES = {
    0x80: "time",
    0x20000: "mnt",
    0x2000000: "cgroup",
    0x4000000: "uts",
    0x8000000: "ipc",
    0x10000000: "user",
    0x20000000: "pid",
    0x40000000: "net",
}
PRCTL = {1: "pdeathsig", 24: "capbset", 36: "subreaper", 38: "no_new_privs", 47: "ambient"}
TERMINAL = range(0x5401, 0x5440)
DUPFD = (0, 1030)


def text_at(pid: int, address: int) -> str:
    """The string at an address of a process that waits in a system call; "" if it is gone."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(256).split(b"\0")[0].decode("utf-8", "replace")
    except (OSError, ValueError, OverflowError):
        return ""


def general(path: str) -> str:
    """A path without what differs from run to run."""
    if path.startswith(PACKAGE):
        return "the package"
    return re.sub(r"\d+", "N", path)


def _any(pid: int, args: Arguments) -> str:
    return ""


def _path(pid: int, args: Arguments, at: int = 0) -> str | None:
    path = text_at(pid, args[at])
    return general(path) if path.startswith(("/proc/", "/sys/", "/dev/", PACKAGE)) else None


def _text(pid: int, args: Arguments, at: int = 0) -> str:
    return general(re.sub(r"^/tmp/.*", "below /tmp", text_at(pid, args[at])))


def _namespaces(pid: int, args: Arguments, at: int = 0) -> str:
    return " ".join(name for bit, name in NAMESPACES.items() if args[at] & bit)


def _file(pid: int, args: Arguments) -> str | None:
    try:
        target = os.readlink(f"/proc/{pid}/fd/{args[0] & 0xFFFFFFFF}")
    except OSError:
        return None
    if target.startswith(("pipe:", "socket:")):
        return target.partition(":")[0]
    if target.startswith("anon_inode:"):
        return target.removeprefix("anon_inode:").strip("[]")
    return general(target) if target.startswith(("/proc/", "/sys/")) else None


def _dupfd(pid: int, args: Arguments) -> str | None:
    return "dupfd" if args[1] in DUPFD else None


def _request(pid: int, args: Arguments) -> str | None:
    return None if args[1] in TERMINAL else hex(args[1])


def _option(pid: int, args: Arguments) -> str:
    return PRCTL.get(args[0], str(args[0]))


_second_path = functools.partial(_path, at=1)
_second_text = functools.partial(_text, at=1)
_second_flags = functools.partial(_namespaces, at=1)

E, _MANY = errno, (errno.EMFILE, errno.ENOMEM)
_IO = (errno.EINTR, errno.ENOMEM)
_DENIED = (errno.EPERM, errno.EACCES)

CALLS: dict[str, Call] = {
    "read": Call(0, _IO, _file),
    "write": Call(1, (E.EINTR, E.ENOSPC, E.EPERM), _file),
    "poll": Call(7, _IO, _any),
    "ioctl": Call(16, (E.EPERM, E.ENOMEM), _request),
    "select": Call(23, _IO, _any),
    "dup": Call(32, (E.EMFILE,), _any),
    "dup2": Call(33, (E.EINTR, E.EMFILE), _any),
    "socket": Call(41, (*_MANY, E.EPERM), _any),
    "connect": Call(42, (E.EPERM, E.EAGAIN), _any),
    "sendto": Call(44, (E.ENOMEM, E.EINTR, E.EPERM), _file),
    "recvfrom": Call(45, _IO, _file),
    "sendmsg": Call(46, (E.ENOMEM, E.EINTR, E.EMFILE), _file),
    "recvmsg": Call(47, _IO, _file),
    "bind": Call(49, (E.EACCES, E.ENOMEM), _any),
    "listen": Call(50, (E.EACCES, E.ENOMEM), _any),
    "socketpair": Call(53, _MANY, _any),
    "setsockopt": Call(54, (E.EPERM, E.ENOMEM), _any),
    "clone": Call(56, (E.EAGAIN, E.ENOMEM, E.EPERM, E.ENOSPC, E.ENOSYS), _namespaces),
    "fork": Call(57, (E.EAGAIN, E.ENOMEM), _any),
    "vfork": Call(58, (E.EAGAIN, E.ENOMEM), _any),
    "execve": Call(59, (E.EACCES, E.ENOMEM), _any),
    "wait4": Call(61, (E.EINTR,), _any),
    "kill": Call(62, (E.EPERM, E.ESRCH), _any),
    "fcntl": Call(72, (E.EMFILE,), _dupfd),
    "chdir": Call(80, (E.EACCES, E.ENOMEM), _any),
    "mkdir": Call(83, (E.EACCES, E.ENOSPC), _path),
    "rmdir": Call(84, (E.EPERM,), _path),
    "setsid": Call(112, (E.EPERM,), _any),
    "capset": Call(126, (E.EPERM,), _any),
    "pivot_root": Call(155, _DENIED, _text),
    "prctl": Call(157, (E.EPERM,), _option),
    "mount": Call(165, (*_DENIED, E.ENOMEM, E.ENOSPC), _second_text),
    "umount2": Call(166, (E.EPERM,), _text),
    "sethostname": Call(170, (E.EPERM,), _any),
    "getdents64": Call(217, (E.ENOMEM,), _file),
    "waitid": Call(247, (E.EINTR,), _any),
    "keyctl": Call(250, (E.EPERM, E.ENOSYS), _any),
    "openat": Call(257, (E.EMFILE, E.EACCES, E.EINTR), _second_path),
    "mkdirat": Call(258, (E.EACCES, E.ENOSPC), _second_path),
    "pselect6": Call(270, _IO, _any),
    "ppoll": Call(271, _IO, _any),
    "unshare": Call(272, (E.EPERM, E.ENOSPC, E.ENOMEM, E.ENOSYS), _namespaces),
    "accept4": Call(288, _MANY, _any),
    "signalfd4": Call(289, _MANY, _any),
    "dup3": Call(292, (E.EINTR, E.EMFILE), _any),
    "pipe2": Call(293, _MANY, _any),
    "setns": Call(308, (E.EPERM, E.ENOMEM, E.ESRCH), _second_flags),
    "memfd_create": Call(319, (*_MANY, E.ENOSYS), _any),
    "pidfd_send_signal": Call(424, (E.EPERM, E.ESRCH), _any),
    "open_tree": Call(428, (E.EPERM, E.EMFILE, E.ENOSYS), _second_text),
    "move_mount": Call(429, _DENIED, _any),
    "pidfd_open": Call(434, (*_MANY, E.ESRCH), _any),
    "clone3": Call(435, (E.EAGAIN, E.ENOMEM, E.ENOSYS), _any),
    "mount_setattr": Call(442, (E.EPERM, E.ENOSYS), _any),
}
NAMES = {call.number: name for name, call in CALLS.items()}


def seccomp_program() -> bytes:
    """A filter that has these calls notified to the supervisor, and allows all others."""
    load, equal, ret = 0x20, 0x15, 0x06
    numbers = sorted(NAMES)
    program = [(load, 0, 0, 0)]
    for index, number in enumerate(numbers):
        program.append((equal, len(numbers) - index, 0, number))
    program += [(ret, 0, 0, 0x7FFF0000), (ret, 0, 0, 0x7FC00000)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
