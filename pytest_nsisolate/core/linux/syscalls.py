"""The system calls that Python does not offer, each with its prototype set once.

Guarantees: a failing call raises `StageError` with the stage the caller named,
the errno and the path; nothing else is raised and nothing is printed.
Assumes: Linux, and a C library that ``ctypes`` can open. On other systems the
module imports, and a call raises ``ENOSYS``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

from pytest_nsisolate.core.errors import StageError as StageError  # noqa: PLC0414 -- callers catch it beside the calls

LINUX = sys.platform == "linux"

# linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_RELATIME = 0x200000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC if LINUX else 0
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MNT_DETACH = 0x2

# linux/fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/capability.h; below 32, as the functions here expect
CAP_SYS_ADMIN = 21

# These three have one number on every architecture (they came after the
# numbers were unified); the keyctl call is older.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
# asm-generic/unistd.h has it at 41, and most newer architectures with it.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_SYS_KEYCTL = {
    "x86_64": 250,
    "aarch64": 219,
    "riscv64": 219,
    "ppc64le": 271,
    "s390x": 280,
}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_PERF_EVENT_OPEN = {
    "x86_64": 298,
    "aarch64": 241,
    "riscv64": 241,
    "ppc64le": 319,
    "s390x": 331,
}
_MADV_COLLAPSE = 25

_MACHINE = os.uname().machine if LINUX else ""
_PIVOT_ROOT_NUMBER = _SYS_PIVOT_ROOT.get(_MACHINE)
_KEYCTL_NUMBER = _SYS_KEYCTL.get(_MACHINE)
_PERF_NUMBER = _SYS_PERF_EVENT_OPEN.get(_MACHINE)

# clone(2) is refused less often than clone3(2), which seccomp filters cannot look
# into; its number and the order of its arguments differ by architecture.
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "ppc64le": 120}
_SYS_CLONE3 = 435
_CLONE_NUMBER = _SYS_CLONE.get(_MACHINE)
_SIGCHLD = 17  # where it differs (mips, sparc, parisc) clone3 is used

_SIG_BLOCK, _SIG_SETMASK = 0, 2  # asm-generic/signal-defs.h
_SIGNALFD_FLAGS = 0o2000000 | 0o4000  # SFD_CLOEXEC | SFD_NONBLOCK
SIGNALFD_SIGINFO_SIZE = 128


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


_READONLY = _MountAttr(attr_set=MOUNT_ATTR_RDONLY)
_CAPABILITY_VERSION_3 = 0x20080522

if LINUX:
    _libc = ctypes.CDLL(None, use_errno=True)
    # Calls that keep the GIL: see `clone`.
    _clone = ctypes.PyDLL(None, use_errno=True)["syscall"]
    _clone.argtypes = (ctypes.c_long,) * 6
    _clone.restype = ctypes.c_long
    _clone3 = ctypes.PyDLL(None, use_errno=True)["syscall"]
    _clone3.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t)
    _clone3.restype = ctypes.c_long
    _unshare = _libc.unshare
    _unshare.argtypes = (ctypes.c_int,)
    _setns = _libc.setns
    _setns.argtypes = (ctypes.c_int, ctypes.c_int)
    _mount = _libc.mount
    _mount.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
    )
    # A variadic function: every argument is passed as an unsigned long, which
    # is what the kernel reads.
    _prctl = _libc.prctl
    _prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
    _capset = _libc.capset
    _capset.argtypes = (ctypes.POINTER(_CapHeader), ctypes.POINTER(_CapData))
    _signalfd = _libc.signalfd
    _signalfd.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    _pthread_sigmask = _libc.pthread_sigmask
    _pthread_sigmask.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
    _umount2 = _libc.umount2
    _umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
    _pivot_root = _libc["syscall"]
    _pivot_root.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p)
    _open_tree = _libc["syscall"]
    _open_tree.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    _move_mount = _libc["syscall"]
    _move_mount.argtypes = (
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    _mount_setattr = _libc["syscall"]
    _mount_setattr.argtypes = (
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
        ctypes.POINTER(_MountAttr),
        ctypes.c_size_t,
    )
    _madvise = _libc.madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _keyctl = _libc["syscall"]
    _keyctl.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p)
    _perf_event_open = _libc["syscall"]
    _perf_event_open.argtypes = (
        ctypes.c_long,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_ulong,
    )
    for _function in (
        _pivot_root,
        _open_tree,
        _move_mount,
        _mount_setattr,
        _keyctl,
        _perf_event_open,
    ):
        _function.restype = ctypes.c_long


def _need_linux(stage: str) -> None:
    if not LINUX:
        raise StageError(stage, errno.ENOSYS)


def _fail(stage: str, path: str = "") -> StageError:
    return StageError(stage, ctypes.get_errno(), path)


def getcwd() -> str:
    """getcwd(2): the working directory; "" if it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def unshare(flags: int, *, stage: str) -> None:
    """unshare(2)."""
    _need_linux(stage)
    if _unshare(flags):
        raise _fail(stage)


def clone(flags: int, *, stage: str) -> int:
    """Fork into new namespaces: clone(2) with *flags*; 0 in the child.

    Nothing of what Python does around `os.fork` is done, so the caller has one
    thread, and nothing that asks to be told of forks.
    """
    _need_linux(stage)
    if _CLONE_NUMBER is not None:
        pid: int = _clone(_CLONE_NUMBER, flags | _SIGCHLD, 0, 0, 0, 0)
    else:
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal,
        # stack, stack_size, tls
        words = struct.pack("=8Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        pid = _clone3(_SYS_CLONE3, words, len(words))
    if pid < 0:
        raise _fail(stage)
    return pid


def setns(fd: int, flags: int, *, stage: str) -> None:
    """setns(2); with a pidfd, *flags* may name several namespaces (Linux 5.8)."""
    _need_linux(stage)
    if _setns(fd, flags):
        raise _fail(stage)


def mount(  # noqa: PLR0917 -- the arguments of mount(2), in its order
    source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes = b"", stage: str = "mount"
) -> None:
    """mount(2)."""
    _need_linux(stage)
    if _mount(source, target, fstype, flags, data):
        raise _fail(stage, os.fsdecode(target))


def open_tree(path: bytes, flags: int) -> int:
    """open_tree(2), Linux 5.2: with OPEN_TREE_CLONE a detached copy of a mount."""
    _need_linux("bind")
    fd: int = _open_tree(_SYS_OPEN_TREE, AT_FDCWD, path, flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _fail("bind", os.fsdecode(path))
    return fd


def umount(path: bytes) -> None:
    """umount2(2) with MNT_DETACH: what is mounted at *path*, and below it."""
    if _umount2(path, MNT_DETACH):
        raise _fail("umount", os.fsdecode(path))


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    stage = "change the root"
    if _PIVOT_ROOT_NUMBER is None:
        raise StageError(stage, errno.ENOSYS, os.fsdecode(new))
    if _pivot_root(_PIVOT_ROOT_NUMBER, new, old):
        raise _fail(stage, os.fsdecode(new))


def move_mount(fd: int, target: bytes) -> None:
    """move_mount(2), Linux 5.2: attach what `open_tree` cloned."""
    if _move_mount(_SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH):
        raise _fail("bind", os.fsdecode(target))


def move_mount_to(fd: int, place: int, path: bytes) -> None:
    """Move a mount onto what the descriptor *place* is open for; *path* is for the error."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _move_mount(_SYS_MOVE_MOUNT, fd, b"", place, b"", flags):
        raise _fail("bind", os.fsdecode(path))


def make_readonly(fd: int, path: bytes) -> None:
    """mount_setattr(2) of read-only on the whole tree below *fd*, Linux 5.12."""
    if _mount_setattr(
        _SYS_MOUNT_SETATTR,
        fd,
        b"",
        AT_EMPTY_PATH | AT_RECURSIVE,
        ctypes.byref(_READONLY),
        ctypes.sizeof(_READONLY),
    ):
        raise _fail("mount read-only", os.fsdecode(path))


def prctl(option: int, arg2: int = 0, arg3: int = 0, *, stage: str = "prctl") -> None:
    """prctl(2)."""
    _need_linux(stage)
    if _prctl(option, arg2, arg3, 0, 0):
        raise _fail(stage)


def keep_capability(capability: int) -> None:
    """Keep one capability for later (`raise_capability`), have none in effect."""
    _set_capabilities(0, 1 << capability)


def raise_capability(capability: int) -> None:
    """Put a capability that was kept into effect."""
    _set_capabilities(1 << capability, 1 << capability)


def _set_capabilities(effective: int, permitted: int, stage: str = "set capabilities") -> None:
    header, data = _CapHeader(_CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    data[0].effective, data[0].permitted = effective, permitted
    if _capset(ctypes.byref(header), data):
        raise _fail(stage)


def drop_capabilities(keep: int = 0) -> None:
    """Empty every capability set of this thread: bounding, ambient and the rest.

    Args:
        keep: bits of capabilities that stay with this process, and reach no program it runs.
    """
    _need_linux("drop capabilities")
    # EINVAL marks the end of the list of capabilities that this kernel knows.
    for capability in range(64):
        if _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            break
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set_capabilities(keep & 0xFFFFFFFF, keep & 0xFFFFFFFF, "drop capabilities")


def new_session_keyring() -> None:
    """keyctl_join_session_keyring(3); kernels without keyrings need nothing."""
    if _KEYCTL_NUMBER is not None:
        _keyctl(_KEYCTL_NUMBER, _KEYCTL_JOIN_SESSION_KEYRING, None)


def perf_event_open(attributes: bytes, pid: int, cpu: int, flags: int) -> int:
    """perf_event_open(2) without a group; raises OSError."""
    if _PERF_NUMBER is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fd: int = _perf_event_open(_PERF_NUMBER, attributes, pid, cpu, -1, flags)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _mask(signals: list[int]) -> bytes:
    mask = bytearray(128)
    for number in signals:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    return bytes(mask)


def block_signals(signals: list[int]) -> bytes:
    """Block *signals*; give the mask before, for `restore_mask`."""
    before = ctypes.create_string_buffer(128)
    _pthread_sigmask(_SIG_BLOCK, _mask(signals), before)
    return before.raw


def restore_mask(mask: bytes) -> None:
    """pthread_sigmask(3). Python's own builds a set of enum members each time."""
    _pthread_sigmask(_SIG_SETMASK, mask, None)


def signalfd(signals: list[int]) -> int:
    """signalfd(2): a descriptor that is readable when one of *signals* waits for the reader."""
    _need_linux("signalfd")
    fd: int = _signalfd(-1, _mask(signals), _SIGNALFD_FLAGS)
    if fd < 0:
        raise _fail("signalfd")
    return fd


def collapse(address: int, length: int) -> int:
    """MADV_COLLAPSE (Linux 6.1): make huge pages of a range; 0, or the errno of the failure."""
    return ctypes.get_errno() if _madvise(address, length, _MADV_COLLAPSE) else 0
