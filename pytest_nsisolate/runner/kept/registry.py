"""Keep the register of kept sandboxes: a file for each, in a directory of its user.

Its custodian (`custodian`) writes the file and holds a lock on it for as long as the sandbox
lives: a file whose lock can be taken is of one that is gone, and is removed by whoever
notices. The processes in it are named by pid and start time, in the pid namespace and the
boot that it says, so no other process is ever taken for one of them.

A user sees entries of its own, root those of everybody: these it believes no more than
that their owner may do what they say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import os
import re
import stat
import tempfile
import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import locks, wire
from pytest_nsisolate.core.linux.kernel_files import read_sysctl
from pytest_nsisolate.core.linux.namespace_files import inode
from pytest_nsisolate.core.linux.proc import start_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIX = ".kept"
#: What an id is made of: no vowels, so that it is no word, and no digits, so that it is no pid.
_LETTERS = "bcdfghjkmnpqrstvwxz"
_LENGTH = 6
#: More than an environment takes, in bytes.
_LARGEST = 8 << 20
#: How often a file is tried to be made while others remove the directory.
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Process:
    """A process by its pid and the time of its start, in ticks since the boot."""

    pid: int
    start: int

    def open(self) -> int | None:
        """Open its pidfd; return None if it has ended, even if another process has that pid now."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if start_of(self.pid) == self.start:
            return pidfd
        os.close(pidfd)
        return None

    def is_alive(self) -> bool:
        """Return whether the process has not ended."""
        return start_of(self.pid) == self.start


@dataclasses.dataclass(frozen=True)
class Entry:
    """A kept sandbox.

    Attributes:
        id: by which it is entered.
        init: its PID 1.
        keeper: the process whose user namespace its own lies in.
        flags: the namespaces that it has of its own.
        tests: the tests that ran in it, by node id.
        why: it was kept.
        since, until: seconds since the epoch.
        directory: where its tests started.
        environment: what they started with.
        place: the pid namespace, and the boot, that pids and start times are of.
        uid, gid: whose it is; as the file says by its owner.
    """

    id: str
    init: Process
    keeper: Process
    flags: int
    tests: tuple[str, ...]
    why: str
    since: float
    until: float
    directory: str
    environment: dict[str, str]
    place: str
    uid: int = -1
    gid: int = -1

    @property
    def here(self) -> bool:
        """Whether its pids mean the same here."""
        return self.place == here()

    def to_wire(self) -> dict[str, Any]:
        """Return the entry in a form that JSON can hold; the owner is the file's."""
        found = dataclasses.asdict(self)
        del found["uid"], found["gid"]
        return found


def of_wire(data: dict[str, Any], owner: os.stat_result | None = None) -> Entry:
    """Rebuild an entry from what `Entry.to_wire` returned, once JSON has carried it.

    Args:
        owner: the file that it is from.

    Raises:
        KeyError, TypeError, ValueError: it makes no sense.
    """
    fields = dict(data)
    for name in ("init", "keeper"):
        fields[name] = Process(int(fields[name]["pid"]), int(fields[name]["start"]))
    for name in ("id", "why", "directory", "place"):
        fields[name] = str(fields[name])
    fields["flags"] = int(fields["flags"])
    fields["tests"] = tuple(map(str, fields["tests"]))
    fields["since"], fields["until"] = float(fields["since"]), float(fields["until"])
    fields["environment"] = {str(k): str(v) for k, v in dict(fields["environment"]).items()}
    if owner is not None:
        fields |= {"uid": owner.st_uid, "gid": owner.st_gid}
    return Entry(**fields)


def new_id() -> str:
    """Make a new random id."""
    # Not by `random`: its state is the tests'.
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in os.urandom(_LENGTH))


def is_id(word: str) -> bool:
    """Return whether *word* looks like an id."""
    return len(word) == _LENGTH and set(word) <= set(_LETTERS)


def age_of(one: Process) -> float:
    """Return how long ago a process started, in seconds."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - one.start / os.sysconf("SC_CLK_TCK"))


def process(pid: int) -> Process | None:
    """Return the process that has this pid now, None if there is none."""
    start = start_of(pid)
    return Process(pid, start) if start is not None else None


def here() -> str:
    """Return a text that tells this pid namespace, in this boot, from all others."""
    return f"{read_sysctl('kernel.random.boot_id')} {inode('self', 'pid')}"


def _directories() -> list[str]:
    """Return where entries may be that this user may see, the place for new ones first."""
    own = locks.directories()
    if os.geteuid():
        return own
    others = [
        path
        for pattern in ("/run/user/*/nsisolate", "/run/lock/nsisolate-*")
        for path in glob.glob(pattern)
    ]
    others += glob.glob(f"{glob.escape(tempfile.gettempdir())}/nsisolate-*")
    return list(dict.fromkeys([*own, *(path for path in others if _whose(path) is not None)]))


def _whose(directory: str) -> int | None:
    """Return the owner of a directory; None if its name gives another user, or none."""
    found = re.search(r"/user/(\d+)/nsisolate$|/nsisolate-(\d+)$", directory)
    try:
        status = os.lstat(directory)
    except OSError:
        return None
    if found is None or not stat.S_ISDIR(status.st_mode):
        return None
    return status.st_uid if status.st_uid == int(found[1] or found[2]) else None


class Held:
    """An entry in the register, by whoever holds its lock."""

    def __init__(self, directory: str, entry: Entry) -> None:
        self._directory = directory
        self._path = f"{directory}/{entry.id}{_SUFFIX}"
        # Locked before it has its name: nobody shall take it for one that is gone.
        partial = f"{directory}/.{entry.id}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(partial, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            with open(self._fd, "w", closefd=False, encoding="utf-8") as stream:
                stream.write(wire.dumps(entry.to_wire()))
            os.link(partial, self._path)
        except BaseException:
            os.close(self._fd)
            raise
        finally:
            os.unlink(partial)

    def remove(self) -> None:
        """Take it out of the register."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._fd)
        with contextlib.suppress(OSError):
            os.rmdir(self._directory)


def put(entry: Entry) -> Held:
    """Put *entry* into the register, or raise OSError."""
    places = locks.directories()
    for number in range(_TRIES):
        place = places[0]
        try:
            locks.private(place)
            return Held(place, entry)
        except FileNotFoundError:
            # A session that ended has just removed the directory.
            if number + 1 == _TRIES:
                raise
        except OSError:
            # Somebody else made it, perhaps to be in the way.
            if len(places) == 1:
                raise
            del places[0]
    raise AssertionError


def entries() -> list[Entry]:
    """Return the entries of living sandboxes, in the order in which they were kept."""
    found = [entry for place in _directories() for entry in _in(place)]
    return sorted(found, key=lambda one: (one.since, one.id))


def _in(directory: str) -> Iterator[Entry]:
    try:
        status = os.lstat(directory)
        names = os.listdir(directory) if stat.S_ISDIR(status.st_mode) else []
    except OSError:
        return
    if status.st_uid != os.geteuid() and os.geteuid():
        return
    for name in names:
        if name.endswith(_SUFFIX) and is_id(name.removesuffix(_SUFFIX)):
            entry = _read(directory, name, status.st_uid)
            if entry is not None and entry.id == name.removesuffix(_SUFFIX):
                yield entry


def _read(directory: str, name: str, owner: int) -> Entry | None:
    path = f"{directory}/{name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as stream:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass  # its custodian lives
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        try:
            return of_wire(wire.loads(stream.read(_LARGEST).decode("utf-8")), status)
        except (KeyError, TypeError, ValueError, AttributeError, wire.WireError):
            return None
