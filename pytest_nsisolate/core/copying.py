"""Copy files of an untrusted tree.

Walks by descriptors and follows no symbolic link, so nothing in the tree can lead out
of it, or out of the directory that is written to, whoever changes it meanwhile. Special
files are left out, and so is what is beyond the bounds; all that is left out is reported.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

#: At most this much is copied per test: bytes on disk, and files and directories.
LIMIT = 256 << 20
MAX_ENTRIES = 50_000
#: How deep directories may be nested; two descriptors are open for each.
MAX_DEPTH = 100
#: How much is told of what was left out.
MAX_TOLD = 10
#: Flags that open a directory, and nothing else, by its own name.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """A name in an open directory."""

    directory: int
    name: str


class Copier:
    """Copies within its bounds, and remembers what it left out.

    Args:
        since: files that have not been changed since then are none of the test's; 0 takes all.
    """

    def __init__(self, since: int = 0) -> None:
        self._since = since
        self._bytes = LIMIT
        self._entries = MAX_ENTRIES
        self.left_out: list[str] = []
        self.more = 0

    def copy(self, source: Entry, target: Entry, path: str = "") -> bool:
        """Copy one entry of a directory to another that does not exist yet; return whether it was.

        Args:
            path: what it is called where it is left out.
        """
        path = path or source.name
        try:
            return self._copy(source, target, path, 0)
        except OSError as error:
            self.leave(path, os.strerror(error.errno or errno.EIO))
            return False

    def leave(self, path: str, reason: str) -> None:
        """Remember that *path* is left out."""
        if len(self.left_out) < MAX_TOLD:
            self.left_out.append(f"{path} ({reason})")
        else:
            self.more += 1

    def _copy(self, source: Entry, target: Entry, path: str, depth: int) -> bool:
        status = os.stat(source.name, dir_fd=source.directory, follow_symlinks=False)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            return self._copy_directory(source, target, path, depth)
        if status.st_ctime_ns < self._since:
            return False
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            self.leave(path, "no regular file")
            return False
        size = status.st_blocks * 512
        if self._entries <= 0 or size > self._bytes:
            self.leave(path, "too much" if self._entries > 0 else "too many files")
            return False
        self._entries -= 1
        if stat.S_ISLNK(mode):
            text = os.readlink(source.name, dir_fd=source.directory)
            os.symlink(text, target.name, dir_fd=target.directory)
        else:
            self._bytes -= _copy_file(source, target, self._bytes)
        return True

    def _copy_directory(self, source: Entry, target: Entry, path: str, depth: int) -> bool:
        if depth >= MAX_DEPTH or self._entries <= 0:
            self.leave(path, "too deep" if self._entries > 0 else "too many files")
            return False
        self._entries -= 1
        below = os.open(source.name, DIRECTORY, dir_fd=source.directory)
        try:
            os.mkdir(target.name, 0o700, dir_fd=target.directory)
            into = os.open(target.name, DIRECTORY, dir_fd=target.directory)
            try:
                copied = self._copy_entries(below, into, path, depth)
                status = os.fstat(below)
                os.fchmod(into, status.st_mode & 0o777)
                os.utime(into, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(into)
            if self._since and not copied:
                os.rmdir(target.name, dir_fd=target.directory)
                return False
        finally:
            os.close(below)
        return True

    def _copy_entries(self, source: int, target: int, path: str, depth: int) -> bool:
        copied = False
        # In order, so that what does not fit any more is the same every time.
        for name in sorted(os.listdir(source)):
            one, new = Entry(source, name), Entry(target, name)
            try:
                copied |= self._copy(one, new, f"{path}/{name}", depth + 1)
            except OSError as error:
                self.leave(f"{path}/{name}", os.strerror(error.errno or errno.EIO))
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    break
        return copied


def _copy_file(source: Entry, target: Entry, most: int) -> int:
    """Copy a file, which may go on changing; at most that many bytes. How many it were."""
    read = os.open(source.name, _READ, dir_fd=source.directory)
    try:
        status = os.fstat(read)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        write = os.open(target.name, _NEW, 0o600, dir_fd=target.directory)
        try:
            copied = _copy_data(read, write, status.st_size, most)
            os.ftruncate(write, status.st_size)
            # Neither set-user-id nor set-group-id: the file gets another owner.
            os.fchmod(write, status.st_mode & 0o777)
            os.utime(write, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(write)
    finally:
        os.close(read)
    return copied


def _copy_data(read: int, write: int, length: int, most: int) -> int:
    """Copy what is no hole; the other file is new."""
    at = copied = 0
    while at < length and copied < most:
        try:
            at = os.lseek(read, at, os.SEEK_DATA)
            end = min(os.lseek(read, at, os.SEEK_HOLE), length, at + most - copied)
        except OSError:
            break  # a hole to the end
        while at < end:
            data = os.pread(read, min(_CHUNK, end - at), at)
            if not data:
                return copied
            written = os.pwrite(write, data, at)
            at += written
            copied += written
    return copied


def open_directory(path: str) -> int:
    """Open an absolute path without following a symbolic link anywhere, or raise OSError."""
    fd = os.open("/", DIRECTORY)
    for part in path.strip("/").split("/"):
        if part:
            try:
                below = os.open(part, DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
    return fd
