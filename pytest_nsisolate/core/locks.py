"""Slots: each is a number that one session locks, and a record of the directories in its name.

A slot is a lock of `filelock` in a directory of this user's, held as long as the
session lives: a slot whose lock can be taken belongs to nobody alive. Beside the lock
stands a record of the directories made in its name, so that whoever takes it next
knows what a killed session left. Neither file outlives a session that ends properly.

`filelock` is imported, and takes the lock, in a short-lived fork that hands over the
locked file: a process that has imported it runs its hooks at every fork, and so would
each test process (1 ms a test with filelock 4.2). The lock is the open file's (flock(2)),
so it is held until its last copy is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
import warnings
from typing import TYPE_CHECKING, NoReturn

from .linux.kernel_files import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import filelock

#: More sessions of one user at once than any machine runs.
_MANY = 4096


class Slot:
    """One slot, held.

    Attributes:
        directory: where its lock is.
        lock: descriptor of the locked file. No process that may outlive the session
            may keep a copy of it.
    """

    def __init__(self, directory: str, number: int, lock: int) -> None:
        self.number = number
        self.lock = lock
        self.directory = directory

    @property
    def name(self) -> str:
        """The name of what is made in this slot's name; no other user has it."""
        return f"nsisolate-{os.geteuid()}-{self.number}"

    @property
    def _record(self) -> str:
        return f"{self.directory}/{self.number}.made"

    def made(self) -> list[str]:
        """Return the paths in the slot's record."""
        lines = (read(self._record) or "").split("\0")
        return [line for line in lines if line.startswith("/") and self.name in line.split("/")]

    def record(self, paths: list[str]) -> None:
        """Put down *paths*, before they are made, instead of what stood there."""
        partial = self._record + ".part"
        with open(partial, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\0".join(paths))
        os.replace(partial, self._record)

    def release(self, *, clean: bool = True) -> None:
        """Release the slot; unless *clean*, the record stays for the next owner."""
        if clean:
            # Removed while the lock is held: see _lock for those who opened it before.
            for path in (self._record, _lock_file(self.directory, self.number)):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        os.close(self.lock)
        with contextlib.suppress(OSError):
            os.rmdir(self.directory)


def directories() -> list[str]:
    """Return where slots may be, the place for new ones first.

    The same for all sessions of one user, where the first ones can be used: they should
    find each other. The last is the temporary directory, which depends on TMPDIR.
    """
    uid = os.geteuid()
    places = [f"/run/user/{uid}/nsisolate", f"/run/lock/nsisolate-{uid}"]
    usable = [path for path in places if os.access(os.path.dirname(path), os.W_OK | os.X_OK)]
    return [*usable, os.path.join(tempfile.gettempdir(), f"nsisolate-{uid}")]


def private(directory: str) -> None:
    """Make *directory* for this user alone; raise OSError if it is another's."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(1, "not a directory of this user", directory)


def _lock_file(directory: str, number: int) -> str:
    return f"{directory}/{number}.lock"


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _take(directory: str, numbers: Iterable[int]) -> Slot | None:
    """Take the first slot of *numbers* whose lock is free; None if there is none.

    Raises:
        OSError: a lock file can't be opened or locked.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; this fork takes a lock and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
            if pid == 0:
                _lock_first(theirs, directory, numbers)
        data, fds, _, _ = socket.recv_fds(ours, 4096, 1)
    os.waitpid(pid, 0)
    if fds:
        os.set_inheritable(fds[0], False)  # noqa: FBT003 -- its only parameter
        return Slot(directory, int(data), fds[0])
    if data:
        number, _, path = data.partition(b" ")
        raise OSError(int(number), os.strerror(int(number)), os.fsdecode(path))
    return None


def _lock_first(control: socket.socket, directory: str, numbers: Iterable[int]) -> NoReturn:
    """Lock the first of *numbers* that is free, and hand it over; in a process of its own."""
    try:
        for number in numbers:
            lock = _lock(directory, number)
            if lock is not None:
                fd = _descriptor(_lock_file(directory, number))
                socket.send_fds(control, [b"%d" % number], [fd])
                break
    except OSError as error:
        path = os.fsencode(error.filename or directory)
        control.send(b"%d %b" % (error.errno or errno.EIO, path[:2048]))
    except BaseException:  # noqa: BLE001 -- the last line of this process
        control.send(b"%d %b" % (errno.EIO, os.fsencode(directory)))
    finally:
        os._exit(0)


def _lock(directory: str, number: int) -> filelock.BaseFileLock | None:
    """Take the lock of a slot; return None if another process holds it."""
    import filelock  # noqa: PLC0415 -- in this process alone: see the module

    path = _lock_file(directory, number)
    while True:
        private(directory)
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        before = _inode(path)
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            return None
        except FileNotFoundError:
            continue  # an owner that ended has just removed the directory
        # Who held it may have removed the file in between, and somebody else locked a
        # new one: only a file that has kept its place is the slot.
        if before is not None and before == _inode(path):
            return lock
        lock.release()


def _descriptor(path: str) -> int:
    """Find this process's descriptor of *path*, which filelock opened."""
    wanted = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), wanted):
                return int(name)
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), path)


def free(directory: str | None = None, numbers: Sequence[int] = range(_MANY)) -> Iterator[Slot]:
    """Yield free slots of *numbers*, each held; the caller releases those it doesn't want."""
    places = [directory] if directory else directories()
    for place in places:
        try:
            private(place)
        except OSError:
            # Somebody else made it, perhaps to be in the way.
            if place == places[-1]:
                raise
            continue
        left = list(numbers)
        while (slot := _take(place, left)) is not None:
            left = left[left.index(slot.number) + 1 :]
            yield slot


def abandoned(directory: str | None = None) -> Iterator[Slot]:
    """Yield the slots of sessions that were killed, each with its lock held."""
    for place in [directory] if directory else directories():
        with contextlib.suppress(OSError):
            names = os.listdir(place)
            numbers = {name.split(".")[0] for name in names if name.endswith((".lock", ".made"))}
            for number in sorted(int(one) for one in numbers if one.isdigit()):
                slot = _take(place, [number])
                if slot is not None:
                    yield slot
