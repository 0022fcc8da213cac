"""The functions that execute the operations of `roots`, one step each.

Each raises `errors.StageError` and nothing else.
"""

from __future__ import annotations

import errno
import os
import signal
import stat

from pytest_nsisolate.core.linux.kernel_files import write_sysctl
from pytest_nsisolate.core.linux.syscalls import (
    AT_RECURSIVE,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    OPEN_TREE_CLONE,
    StageError,
    make_readonly,
    mount,
    move_mount_to,
    open_tree,
    pivot_root,
    umount,
)

from .steps import put_back, remount_readonly, written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Where what belongs to a stage (`stage`) lies: the host's tree, where the new root
#: is put together, the file system of what is written, the directories above all
#: overlays, the writable paths, and what hides parts of overlays.
OLD, NEW, UPPER, SKELETON, WRITABLE, MASK = (
    b"/old",
    b"/new",
    b"/up",
    b"/skel",
    b"/rw",
    b"/mask",
)
#: A file of a directory that can't be an overlay is copied, if it is no longer, in bytes.
COPIED = 1 << 20
#: How long an interpreter may take to start, in seconds.
_START_LIMIT = 20
_KERNELS_OWN = MS_NOSUID | MS_NODEV | MS_NOEXEC
#: Of a foreign root; what a fresh interpreter says when it can't start.
_SAID = 400

#: The root before `enter_root`, while the sandbox is being built.
_left: list[int] = []


def _failed(stage: str, error: OSError, path: bytes) -> StageError:
    return StageError(stage, error.errno or errno.EIO, os.fsdecode(path))


def stage() -> None:
    """Make an empty root, with the tree as it was at `OLD`."""
    # Any directory will do: what is mounted there becomes the root at once.
    place = b"/proc"
    mount(b"tmpfs", place, b"tmpfs", MS_NOSUID | MS_NODEV, b"size=128m,mode=755", "stage")
    try:
        for name in (OLD, NEW, UPPER, SKELETON, WRITABLE, MASK):
            os.mkdir(place + name, 0o755)
    except OSError as error:
        raise _failed("stage", error, place) from None
    pivot_root(place, place + OLD)
    os.chdir("/")


def seal(top: bytes) -> None:
    """Make the tree at *top* read-only, with all that is mounted in it.

    Its /proc stays as it is: the kernel mounts no fresh one beside one that is locked
    read-only (mount_namespaces(7)).
    """
    proc = top.rstrip(b"/") + b"/proc"
    fd = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        make_readonly(fd, top)
    except StageError as error:
        if error.errno != errno.ENOSYS:
            raise
        remount_readonly(top, proc)
    finally:
        os.close(fd)
    flags = MS_REMOUNT | MS_BIND | _KERNELS_OWN
    mount(b"none", proc, b"", flags, b"", "mount writable")


def spare_proc() -> None:
    """Put an empty directory over /proc, and keep the one that was there out of sight.

    A sandbox that mounts a fresh one needs one that nothing is mounted on, and none of
    its processes may find the session's by taking mounts away.
    """
    old = open_tree(b"/proc", OPEN_TREE_CLONE | AT_RECURSIVE)
    try:
        cover_proc(old)
    finally:
        os.close(old)


def cover_proc(spare: int) -> None:
    """Cover /proc; the tree *spare* lies below the cover."""
    flags, options = _KERNELS_OWN, b"size=4k,mode=555"
    mount(b"tmpfs", b"/proc", b"tmpfs", flags, options)
    _make(os.mkdir, b"/proc/spare")
    put_back(spare, b"/proc/spare", readonly=False)
    mount(b"tmpfs", b"/proc", b"tmpfs", flags | MS_RDONLY, options)


def _make(make: object, path: bytes) -> None:
    try:
        make(path, 0o755)  # type: ignore[operator]
    except OSError as error:
        raise _failed("make directory", error, path) from None


def fresh_proc(spare: bool, pid_max: str) -> None:  # noqa: FBT001 -- called by position only
    """Mount a /proc whose settings of the whole machine can't be written to.

    For a sandbox of root: to the kernel, the files of /proc/sys are root's.

    Args:
        spare: whether to hide another one, for a session within this sandbox.
        pid_max: up to which number pids are given out in here; 0 leaves that to the kernel.
    """
    if spare:
        mount(b"tmpfs", b"/proc", b"tmpfs", _KERNELS_OWN, b"size=4k,mode=555")
        _make(os.mkdir, b"/proc/spare")
        mount(b"proc", b"/proc/spare", b"proc", _KERNELS_OWN)
        mount(b"tmpfs", b"/proc", b"tmpfs", _KERNELS_OWN | MS_RDONLY, b"size=4k,mode=555")
    mount(b"proc", b"/proc", b"proc", _KERNELS_OWN)
    if pid_max != "0":
        write_sysctl("kernel.pid_max", pid_max)
    net = open_tree(b"/proc/sys/net", OPEN_TREE_CLONE)
    try:
        for name in (b"sys", b"sysrq-trigger", b"irq", b"bus", b"fs"):
            _bind_readonly(b"/proc/" + name)
        put_back(net, b"/proc/sys/net", readonly=False)  # of the sandbox's own network
    finally:
        os.close(net)


def _bind_readonly(path: bytes) -> None:
    try:
        fd = open_tree(path, OPEN_TREE_CLONE)
    except StageError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    try:
        put_back(fd, path, readonly=True)
    finally:
        os.close(fd)


def keep(path: bytes, place: bytes) -> None:
    """Bind the tree at *path* on *place*, which is made."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _failed("keep writable", error, path) from None
    mount(path, place, b"", MS_BIND | MS_REC, b"", "bind")


def build_tree(top: bytes, entries: list[tuple[str, str, int, int, int, str]]) -> None:
    """Make the files that stand in for those of directories that can't be overlays.

    Args:
        entries: below *top*, parents first: path, kind, mode, uid, gid (-1: whoever this
            is) and, of a link, where it leads; the text of a file is that of the host's,
            and so are the attributes of what stands in for a file of another owner.
    """
    path = top
    made: list[tuple[bytes, int]] = []
    try:
        if top != SKELETON:
            os.mkdir(top, 0o755)
        for name, kind, mode, uid, gid, target in entries:
            path = top + os.fsencode(name)
            if kind == "link":
                os.symlink(os.fsencode(target), path)
                continue
            if kind in ("dir", "opaque"):
                if name != "/":
                    os.mkdir(path, 0o700)
                if kind == "opaque":
                    os.setxattr(path, b"user.overlay.opaque", b"y")
                made.append((path, mode))
                if target:
                    _copy_attributes(os.fsencode(target), path)
            elif not _build_file(path, os.fsencode(target), mode, whole=kind == "copy"):
                continue
            if uid >= 0:
                os.chown(path, uid, gid, follow_symlinks=False)
        for path, mode in made:
            os.chmod(path, mode)
    except OSError as error:
        raise _failed("build the root", error, path) from None


def _build_file(path: bytes, source: bytes, mode: int, *, whole: bool) -> bool:
    """Make a file in the place of *source*; return whether there is one now.

    Args:
        whole: whether it stands in for *source* in all, or shows its beginning.
    """
    there = _write_file(path, source, 1 << 62 if whole else COPIED)
    os.chmod(path, mode)
    if whole and there:
        _copy_attributes(source, path)
    elif whole:  # gone meanwhile
        os.unlink(path)
    return there or not whole


def _copy_attributes(source: bytes, path: bytes) -> None:
    """Give *path* the attributes of users that *source* has; a tmpfs may take none (Linux 6.6)."""
    try:
        for name in os.listxattr(source):
            if name.startswith("user.") and not name.startswith("user.overlay."):
                os.setxattr(path, name, os.getxattr(source, name))
    except OSError:
        return


def _write_file(path: bytes, source: bytes, longest: int) -> bool:
    """Make a file with the text and times of *source*; return whether that could be read."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        if not source:
            return True
        try:
            stream = open(source, "rb", buffering=0)  # noqa: SIM115 -- closed below
        except OSError:
            return False  # nor may the test read it
        with stream:
            while longest > 0 and (part := stream.read(min(longest, COPIED))):
                longest -= os.write(fd, part)
            status = os.fstat(stream.fileno())
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        return True
    finally:
        os.close(fd)


def cover(path: bytes, inside: list[tuple[str, bool]], directory: bool) -> None:  # noqa: FBT001 -- called by position only
    """Cover *path* by an empty directory or file, read-only.

    No symbolic link is followed on the way: it has been resolved, and what has become
    one since is not what was meant.

    Args:
        inside: what is made in the directory, to bind things on: relative path, and
            whether it is a directory.
    """
    place = _find(path)
    try:
        # Put together where nothing needs to be made: a sandbox has its own /proc.
        work = b"/proc" if os.path.isdir(b"/proc") else NEW
        mount(b"tmpfs", work, b"tmpfs", _KERNELS_OWN, b"size=64k,mode=755", "hide")
        try:
            source = work
            for name, is_directory in inside:
                _make_place(work + b"/" + os.fsencode(name), is_directory)
            if not directory:
                source = work + b"/file"
                _make_place(source, is_directory=False)
            fd = open_tree(source, OPEN_TREE_CLONE)
        finally:
            umount(work)
        try:
            move_mount_to(fd, place, path)
        finally:
            os.close(fd)
        mount(b"none", path, b"", MS_REMOUNT | MS_BIND | MS_RDONLY | _KERNELS_OWN, b"", "hide")
    finally:
        os.close(place)


def _make_place(path: bytes, is_directory: bool) -> None:  # noqa: FBT001 -- as above
    try:
        os.makedirs(path if is_directory else os.path.dirname(path), 0o755, exist_ok=True)
        if not is_directory:
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    except OSError as error:
        raise _failed("hide", error, path) from None


def _find(path: bytes) -> int:
    """Open *path* as a location (O_PATH), without following a symbolic link."""
    fd = os.open(b"/", os.O_PATH | os.O_CLOEXEC)
    try:
        for name in path.strip(b"/").split(b"/"):
            below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                os.close(fd)
                raise StageError("hide", errno.ELOOP, os.fsdecode(path))
    except OSError as error:
        os.close(fd)
        raise _failed("hide", error, path) from None
    return fd


def uppers(size: int) -> None:
    """Mount the file system in memory that takes what is written; at most *size* bytes."""
    flags = MS_NOSUID | MS_NODEV
    mount(b"tmpfs", UPPER, b"tmpfs", flags, b"size=%d,mode=700" % size)
    # What has been written is asked for at the end of a test. A copy of the mount, that is
    # mounted nowhere: no ".." leads from it to the root before, not even for root inside.
    written.append(open_tree(UPPER, OPEN_TREE_CLONE))


def overlay(  # noqa: PLR0917 -- called by position only
    target: bytes,
    lowers: tuple[bytes, ...],
    upper: bytes,
    mode: int,
    owner: tuple[int, int],
    flags: int,
) -> None:
    """Mount an overlay at *target*.

    Args:
        lowers: directories from the uppermost down. The last is named by "." to the
            kernel, as its path may hold anything; the others are our own.
        upper: name of the directory of what is written; b"" for none.
        mode: of the root of the overlay; the kernel takes it from *upper*.
        owner: of that root; -1 for whoever this is.
    """
    options = b"lowerdir=" + b":".join((*lowers[:-1], b"."))
    path = target
    try:
        if upper:
            above, work = UPPER + b"/u" + upper, UPPER + b"/w" + upper
            os.mkdir(work, 0o700)
            os.mkdir(above, 0o700)
            os.chmod(above, mode)
            if owner[0] >= 0:
                os.chown(above, *owner)
            options += b",upperdir=" + above + b",workdir=" + work
        options += b",userxattr"
        path = lowers[-1]
        os.chdir(path)
    except OSError as error:
        if path == lowers[-1] and _has_vanished(path):
            return
        raise _failed("mount overlay", error, path) from None
    mount(b"overlay", target, b"overlay", flags, options, "mount overlay")


def bind_tree(source: bytes, target: bytes) -> None:
    """Bind the tree *source*, with the flags its mounts have."""
    try:
        mount(source, target, b"", MS_BIND | MS_REC, b"", "bind")
    except StageError:
        if not _has_vanished(source):
            raise


def _has_vanished(path: bytes) -> bool:
    """Return whether the host's *path* has vanished since the plan was made.

    In /tmp, above all, directories come and go all the time. What stands in for it in the
    new root, empty, is as near as can be.
    """
    return path.startswith(OLD + b"/") and not os.path.lexists(path)


def enter_root() -> None:
    """Make what lies at `NEW` the root; the other one stays, unseen, for `leave_root`."""
    try:
        _left.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        os.chdir(NEW)
    except OSError as error:
        raise _failed("change the root", error, NEW) from None
    pivot_root(b".", b".")
    os.chdir("/")


def leave_root() -> None:
    """Unmount the old root."""
    fd = _left.pop()
    try:
        os.fchdir(fd)
        umount(b".")
        os.chdir("/")
    except OSError as error:
        raise _failed("leave the old root", error, b"/") from None
    finally:
        os.close(fd)


def start_program(words: list[bytes]) -> None:
    """Start a program and wait for its end; one that can't be started fails the sandbox.

    Assumes: SIGCHLD is ignored, as in the PID 1 of a sandbox.
    """
    read, write = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        pid = os.fork()
        if pid == 0:
            _execute(words, write)
        os.close(write)
        write = -1
        said = _read_all(read)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.close(read)
        if write >= 0:
            os.close(write)
    if code:
        number = int(said) if said.isdigit() else errno.ELIBBAD
        text = os.fsdecode(words[0]) + ("" if said.isdigit() else f" ({os.fsdecode(said)})")
        raise StageError("start Python in the new root", number, text)


def _read_all(fd: int) -> bytes:
    data = b""
    while part := os.read(fd, _SAID):
        data += part
    return b" ".join(data[:_SAID].split())


def _execute(words: list[bytes], stderr: int) -> NoReturn:
    try:
        signal.alarm(_START_LIMIT)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(stderr, 2)
        os.execve(words[0], words, {})
    except OSError as error:
        os.write(stderr, b"%d" % (error.errno or errno.EIO))
    finally:
        os._exit(127)
