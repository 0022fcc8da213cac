"""Find files of other owners that a test may write to, and their stand-ins in an overlay.

Before an overlay is written to, the kernel copies the file, and each directory above it,
with their owners. A user without rights has one uid and one gid in its namespace: what
belongs to another user or group can't be copied, and the write fails (EOVERFLOW). So a
layer of stand-ins that belong to this user is put above the host's directory: of each
directory that it may write to, or that holds what is its own, and copies of the files that
it may write to or rename. They are made once for each kind of sandbox, so that a test pays
nothing for them.

Only looks at the host; what it finds are entries of `roots.Skeleton`.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.spec import bounds

from .host_tree import ancestors, may_hang, mount_of
from .overlay import below, piece_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .host_tree import HostTree
    from .overlay import Layout, Owner

    Item = tuple[str, str, int, int, int, str]

#: So many files and directories are looked at below each directory.
MANY_SEEN = 20_000


class _Place(NamedTuple):
    """A directory to look into, whether it is this user's, and whether it may write to it."""

    path: str
    mine: bool
    writable: bool


class _Survey:
    """The search below one directory, which is or belongs to the root of an overlay."""

    def __init__(self, top: str, owner: Owner, found: dict[str, Item]) -> None:
        self._top = top
        self._owner = owner
        self._found = found
        self._bytes = sum(_size(item) for item in found.values())
        self._folders: dict[str, os.stat_result] = {}
        self._queue = [_Place(top, mine=True, writable=_may(top, os.W_OK | os.X_OK))]

    def run(self, skipped: set[str]) -> None:
        """Search, beginning with the directories nearest to the top."""
        seen = 0
        for place in self._queue:
            try:
                with os.scandir(place.path) as entries:
                    for entry in entries:
                        seen += 1
                        if seen > MANY_SEEN or len(self._found) > bounds.STAND_INS:
                            return
                        if entry.path not in skipped:
                            self._look(entry, place)
            except OSError:  # closed to this user, or gone meanwhile
                continue

    def _look(self, entry: os.DirEntry[str], place: _Place) -> None:
        status = entry.stat(follow_symlinks=False)
        mine = self._owner.owns(status.st_uid, status.st_gid)
        if mine and not place.mine:
            self._take_folder(place.path)
        if stat.S_ISDIR(status.st_mode):
            self._folders[entry.path] = status
            writable = not mine and _may(entry.path, os.W_OK | os.X_OK)
            if writable:
                self._take_folder(entry.path)
            self._queue.append(_Place(entry.path, mine, mine or writable))
        elif not mine:
            self._take_file(entry.path, status, place)

    def _take_file(self, path: str, status: os.stat_result, place: _Place) -> None:
        if stat.S_ISLNK(status.st_mode) and place.writable:
            self._take_folder(place.path)
            self._found[path] = (path, "link", 0o777, -1, -1, os.readlink(path))
        elif stat.S_ISREG(status.st_mode) and (place.writable or _may(path, os.W_OK)):
            size = status.st_size
            if (
                size > bounds.LARGEST_STAND_IN
                or self._bytes + size > bounds.STAND_IN_BYTES
                or not _may(path, os.R_OK)
            ):
                return
            self._bytes += size
            self._take_folder(place.path)
            self._found[path] = (path, "copy", self._mode(path, status), -1, -1, path)

    def _take_folder(self, path: str) -> None:
        while path != self._top and path not in self._found:
            mode = self._mode(path, self._folders[path])
            self._found[path] = (path, "dir", mode, -1, -1, path)
            path = os.path.dirname(path)

    def _mode(self, path: str, status: os.stat_result) -> int:
        """Return the mode that lets the stand-in's owner do what it may do on the host."""
        if status.st_uid == self._owner.uid and not self._owner.unsure:
            return stat.S_IMODE(status.st_mode)
        rights = sum(bit for bit in (os.R_OK, os.W_OK, os.X_OK) if _may(path, bit))
        return (status.st_mode & 0o1077) | rights << 6


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _size(item: Item) -> int:
    if item[1] != "copy":
        return 0
    try:
        return os.stat(item[0]).st_size
    except OSError:
        return 0


def find(tops: Iterable[str], tree: HostTree, owner: Owner) -> dict[str, Item]:
    """Find what is below *tops* and needs a stand-in; return the stand-ins by path."""
    found: dict[str, Item] = {}
    kept = [top for top in sorted(tops) if os.path.realpath(top) == top]
    for top in kept:
        if not may_hang(mount_of(top, tree.mounts).kind):
            hanging = {path for path, one in tree.mounts.items() if may_hang(one.kind)}
            _Survey(top, owner, found).run({*kept, *hanging})
    return found


def add(
    found: dict[str, Item],
    tree: HostTree,
    owner: Owner,
    layout: Layout,
    kept: Iterable[str],
) -> None:
    """Put the stand-ins above the overlays of *layout* that they belong to.

    Args:
        kept: what is written to on the host in any case.
    """
    there: dict[str, set[str]] = {}
    for path in sorted(found):
        piece = piece_of(path, layout.pieces)
        if piece is None or piece.why or piece.path == path or piece.path in layout.made:
            continue
        if any(below(path, one) for one in kept):
            continue
        entries = layout.masks.setdefault(piece.path, [])
        known = there.setdefault(piece.path, set())
        for one in (*ancestors(path), path):
            if one in known or not below(one, piece.path):
                continue
            known.add(one)
            if one in found:
                entries.append(found[one])
            elif (entry := tree.directories.get(one)) is not None:
                entries.append((one, "dir", *owner.seen(entry), ""))
