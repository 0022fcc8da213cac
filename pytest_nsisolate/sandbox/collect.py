"""Bring files out of a sandbox: the part that PID 1 of the sandbox does.

PID 1 sees what the test saw and may read all of it, files of other ids too; where
things go to, it is handed as descriptors of directories on the host. It opens nothing
but by descriptors, and follows no symbolic link (`copying`).
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
from typing import TYPE_CHECKING

from pytest_nsisolate.core.artifacts import STAGING, Collected, CollectRequest
from pytest_nsisolate.core.copying import (
    DIRECTORY,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_TOLD,
    Copier,
    Entry,
    open_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many paths that were written in overlays are reported.
MAX_WRITTEN = 200


def bring_out(request: CollectRequest, targets: list[int], uppers: list[int]) -> Collected:
    """Copy what *request* names to *targets*; return what was copied and what was left out.

    Args:
        targets: the directories on the host, one for each part.
        uppers: the directory of the upper directories of overlays, if there is one.
    """
    renamed: list[tuple[str, str]] = []
    first = Copier()
    if request.temporary:
        renamed = _temporary(request, targets[0], first)
    second = Copier(request.since)
    artifacts = ""
    if request.name:
        place = _Place(targets[-1], request.name)
        try:
            if request.staging:
                _staged(request, place, first)
            for pattern in request.patterns:
                _matching(request, pattern, place, second)
        finally:
            artifacts = place.close()
    left_out = (first.left_out + second.left_out)[:MAX_TOLD]
    more = first.more + second.more + len(first.left_out + second.left_out) - len(left_out)
    changed = written(uppers[0], request.overlays) if uppers else []
    return Collected(tuple(renamed), artifacts, tuple(left_out), more, tuple(changed))


def written(uppers: int, overlays: tuple[tuple[int, str], ...]) -> list[str]:
    """List what was made, changed or removed in overlays, without directories."""
    found: list[str] = []
    seen = 0
    for number, path in overlays:
        # Directories to look into: below the upper one, and what they are called inside.
        todo = [(f"u{number}", path.rstrip("/"))]
        while todo and len(found) <= MAX_WRITTEN and seen < MAX_ENTRIES:
            place, shown = todo.pop()
            try:
                fd = os.open(place, DIRECTORY, dir_fd=uppers)
            except OSError:
                continue
            try:
                for name in sorted(os.listdir(fd)):
                    seen += 1
                    mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        todo.append((f"{place}/{name}", f"{shown}/{name}"))
                    else:
                        # the kernel's mark of what was removed
                        gone = stat.S_ISCHR(mode)
                        found.append(f"{shown}/{name}" + (" (removed)" if gone else ""))
            except OSError:
                continue
            finally:
                os.close(fd)
    return found[:MAX_WRITTEN]


def _temporary(request: CollectRequest, target: int, copier: Copier) -> list[tuple[str, str]]:
    renamed = []
    try:
        source = open_directory(request.temporary)
    except OSError:
        return []  # the test has removed it, or put something else in its place
    try:
        for name in sorted(os.listdir(source)):
            mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode) or name == STAGING:
                continue
            if name in request.skip and _is_empty(source, name):
                continue
            new = _free(name, target)
            if copier.copy(Entry(source, name), Entry(target, new)) and new != name:
                renamed.append((name, new))
    finally:
        os.close(source)
    return renamed[:MAX_TOLD]


def _is_empty(directory: int, name: str) -> bool:
    try:
        fd = os.open(name, DIRECTORY, dir_fd=directory)
    except OSError:
        return False
    try:
        return not os.listdir(fd)
    finally:
        os.close(fd)


def _free(name: str, target: int) -> str:
    """Return *name*, or that with the next free number, as pytest numbers its directories."""
    taken = {one.lower() for one in os.listdir(target)}
    stem = name.rstrip("0123456789")
    number = int(name[len(stem) :] or 0)
    while name.lower() in taken:
        number += 1
        name = f"{stem}{number}"
    return name


class _Place:
    """The directory for artifacts of one test: made when the first of them comes."""

    def __init__(self, target: int, name: str) -> None:
        self._target = target
        self._wanted = name
        self._fd = -1
        self._name = ""

    def open(self, parts: list[str]) -> int:
        """Make and open the directory *parts* for a file; the caller closes it."""
        if self._fd < 0:
            self._make()
        fd = os.dup(self._fd)
        for part in parts:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _make(self) -> None:
        number = 1
        while True:
            name = self._wanted if number == 1 else f"{self._wanted}-{number}"
            try:
                # Atomic: two tests, or two workers of xdist, never have one directory.
                os.mkdir(name, 0o755, dir_fd=self._target)
            except FileExistsError:
                number += 1
            else:
                break
        self._fd = os.open(name, DIRECTORY, dir_fd=self._target)
        self._name = name

    def take_back(self, parts: list[str]) -> None:
        """Remove the directories of a file that did not come, unless others came into them."""
        for end in range(len(parts), 0, -1):
            with contextlib.suppress(OSError):
                os.rmdir("/".join(parts[:end]), dir_fd=self._fd)

    def close(self) -> str:
        """Close the directory and return its name; remove it and return "" if it is empty."""
        if self._fd < 0:
            return ""
        os.close(self._fd)
        try:
            os.rmdir(self._name, dir_fd=self._target)
        except OSError:
            return self._name
        return ""


def _staged(request: CollectRequest, place: _Place, copier: Copier) -> None:
    try:
        source = open_directory(request.staging)
    except OSError:
        return
    try:
        for name in sorted(os.listdir(source)):
            _put(copier, source, name, place, [])
    finally:
        os.close(source)


def _put(copier: Copier, source: int, name: str, place: _Place, parts: list[str]) -> None:
    path = "/".join([*parts, name])
    try:
        target = place.open(parts)
    except OSError as error:
        copier.leave(path, os.strerror(error.errno or errno.EIO))
        return
    try:
        if not copier.copy(Entry(source, name), Entry(target, name), path):
            place.take_back(parts)
    finally:
        os.close(target)


def _matching(request: CollectRequest, pattern: str, place: _Place, copier: Copier) -> None:
    base = request.directory.strip("/").split("/")
    try:
        root = os.open("/", DIRECTORY)
    except OSError:
        return
    try:
        seen: set[tuple[int, int]] = set()
        for source, parts in match(root, pattern.strip("/").split("/")):
            status = os.stat(parts[-1], dir_fd=source, follow_symlinks=False)
            known = (status.st_dev, status.st_ino) in seen
            seen.add((status.st_dev, status.st_ino))
            changed = stat.S_ISDIR(status.st_mode) or status.st_ctime_ns >= request.since
            if not known and changed and not stat.S_ISLNK(status.st_mode):
                short = parts[len(base) :] if parts[: len(base)] == base else parts
                if short:
                    _put(copier, source, short[-1], place, short[:-1])
    except OSError as error:
        copier.leave(pattern, os.strerror(error.errno or errno.EIO))
    finally:
        os.close(root)


def match(
    root: int, pattern: list[str], parts: tuple[str, ...] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Yield what matches *pattern* below the directory *root*: the directory, and the whole path.

    ``*``, ``?`` and ``[]`` match within a name, and no hidden one unless they begin with
    a dot; ``**`` stands for directories, none or any.
    """
    first, *rest = pattern
    if first == "**":
        if rest:
            yield from match(root, rest, parts)
        names = [name for name in _names(root) if not name.startswith(".")]
        rest = pattern
    elif any(character in first for character in "*?["):
        hidden = first.startswith(".")
        names = [
            name
            for name in _names(root)
            if fnmatch.fnmatchcase(name, first) and (hidden or not name.startswith("."))
        ]
    else:
        names = [first]
    for name in names:
        if not rest or pattern == ["**"]:
            try:
                os.stat(name, dir_fd=root, follow_symlinks=False)
            except OSError:
                continue
            yield root, [*parts, name]
            continue
        if len(parts) > MAX_DEPTH:
            return
        try:
            below = os.open(name, DIRECTORY, dir_fd=root)
        except OSError:
            continue  # no directory, or a link to one
        try:
            yield from match(below, rest, (*parts, name))
        finally:
            os.close(below)


def _names(root: int) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except OSError:
        return []
