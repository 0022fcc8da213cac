"""Work out which directories of the host get an overlay: a pure function of the host's facts.

A directory with something mounted below it can't be the lower one of an overlay in a
user namespace (its mounts are locked: the overlay would show what they hide). So the
root, and each directory on the way to a mount, is made anew (the skeleton), and each
directory in it that nothing is mounted below gets an overlay of its own. What can't
have one is bound read-only, and says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux.syscalls import MS_RDONLY

from .host_tree import ancestors, may_hang, mount_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .host_tree import Entry, HostTree

#: A file system for all users among the devices; a test suite may live in it.
SHARED = "/dev/shm"  # noqa: S108 -- as said
#: Made anew for each sandbox, or the host's devices.
OWN_PROC, BOUND = "/proc", {"/dev": "devices", "/sys": "the kernel's"}
#: File systems that the kernel takes no overlays of.
_UNFIT = frozenset("exfat hfs hfsplus jfs msdos ntfs ntfs3 vfat".split())  # noqa: SIM905 -- as above
_KERNEL = frozenset(
    "binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl "  # noqa: SIM905 -- as above
    "hugetlbfs mqueue nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
#: A directory on the way to a mount that has more subdirectories is bound whole: each
#: would cost every test an overlay.
MANY_OVERLAYS = 48
#: The longest file that is copied into the skeleton, in bytes; see `root_steps.COPIED`.
COPIED = 1 << 20


class Piece(NamedTuple):
    """A part of the new root: an overlay, or with *why*, a read-only bind."""

    path: str
    why: str
    mode: int
    uid: int
    gid: int
    flags: int


class Layout(NamedTuple):
    """The new root.

    Attributes:
        entries: of the skeleton, as `roots.Skeleton` has them.
        pieces: parents first.
        made: of the pieces that nothing of the host lies below: their own entries.
        masks: of others, what lies above the host's directory.
    """

    entries: list[tuple[str, str, int, int, int, str]]
    pieces: list[Piece]
    made: dict[str, list[tuple[str, str, int, int, int, str]]]
    masks: dict[str, list[tuple[str, str, int, int, int, str]]]


class Owner(NamedTuple):
    """Whose sandbox it is.

    Attributes:
        uid, gid: its own.
        all_ids: whether it may give files away.
        unsure: whether files of others may seem to be its own.
        groups: the further gids whose rights it has.
    """

    uid: int
    gid: int
    all_ids: bool
    unsure: bool = False
    groups: tuple[int, ...] = ()

    def has(self, entry: Entry) -> bool:
        """Return whether the kernel can copy *entry* with the owner and group that it has."""
        return self.all_ids or self.owns(entry.uid, entry.gid)

    def owns(self, uid: int, gid: int) -> bool:
        """Return whether a file with these ids certainly belongs to the owner."""
        return (uid, gid) == (self.uid, self.gid) and not self.unsure

    def seen(self, entry: Entry) -> tuple[int, int, int]:
        """Return mode, uid and gid of a stand-in of *entry*: this user's rights stay the same.

        Who has only its own id can't give a file to its true owner. It owns the
        stand-in, with the rights that it had before as another user.
        """
        if self.all_ids:
            return entry.mode, entry.uid, entry.gid
        if entry.uid == self.uid:
            return entry.mode, -1, -1
        in_group = entry.gid == self.gid or entry.gid in self.groups
        rights = entry.mode >> 3 & 7 if in_group else entry.mode & 7
        return (entry.mode & 0o1077) | rights << 6, -1, -1


def below(path: str, top: str) -> bool:
    """Return whether *path* is *top* or lies in it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


class Covered(NamedTuple):
    """Directories that the sandbox covers, and what of them it takes up before and puts back."""

    tops: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def hides(self, path: str) -> bool:
        """Return whether the sandbox shows neither *path* nor anything in it."""
        if not any(below(path, top) for top in self.tops):
            return False
        return not any(below(one, path) or below(path, one) for one in self.needed)

    def in_part(self, path: str) -> bool:
        """Return whether the sandbox shows at most parts of *path*."""
        covered = any(below(path, top) for top in self.tops)
        return covered and not any(below(path, one) for one in self.needed)


def lay_out(tree: HostTree, owner: Owner, covered: Covered, apart: Iterable[str]) -> Layout:
    """Lay out the new root over the host's tree.

    Args:
        owner: whose it is.
        covered: what the sandbox covers anyway, and so needs no overlay.
        apart: directories that get an overlay of their own where writing to them would
            otherwise take a copy of a directory that isn't *owner*'s.
    """
    layout = Layout([("/", "dir", *owner.seen(tree.directories["/"]), "")], [], {}, {})
    _walk("/", tree, owner, covered, layout)
    if covered.hides(SHARED):
        pass
    elif SHARED in tree.listings:
        # It lies in what is bound, so it can't be a part of the skeleton.
        own = owner.seen(tree.directories[SHARED])
        shared = Layout([(SHARED, "dir", *own, "")], [Piece(SHARED, "", *own, 0)], {}, {})
        _walk(SHARED, tree, owner, covered, shared)
        layout.pieces.extend(shared.pieces)
        layout.made[SHARED] = shared.entries
    elif SHARED in tree.directories:
        layout.pieces.append(Piece(SHARED, "", *owner.seen(tree.directories[SHARED]), 0))
    # What is brought back in one of these would take a copy of it, which has another owner.
    tops = [top for top in covered.tops if any(below(one, top) for one in covered.needed)]
    for path in sorted({*apart, *tops}):
        _set_apart(path, tree, owner, layout)
    layout.pieces.sort()
    return layout


def _walk(directory: str, tree: HostTree, owner: Owner, covered: Covered, layout: Layout) -> None:
    for entry in _entries(directory, tree, covered):
        path = directory.rstrip("/") + "/" + entry.name
        hidden = covered.hides(path)
        if hidden and path not in covered.tops:
            continue
        mode, uid, gid = owner.seen(entry)
        if entry.kind == "link":
            layout.entries.append((path, "link", 0o777, uid, gid, entry.target))
        elif entry.kind == "file":
            layout.entries.append((path, "file", mode, uid, gid, path))
            if entry.size > COPIED:
                layout.pieces.append(Piece(path, "a large file", mode, uid, gid, 0))
        elif entry.kind == "dir":
            layout.entries.append((path, "dir", mode, uid, gid, ""))
            if path == OWN_PROC or hidden or (entry.empty and path not in tree.mounts):
                continue  # its stand-in in the skeleton will do
            kind, flags = mount_of(path, tree.mounts)
            why = BOUND.get(path) or _refusal(kind) or _too_many(path, tree, covered)
            if flags & MS_RDONLY and path not in tree.listings:
                why = why or "so it is on the host"
            if not entry.searchable:
                why = why or "closed to this user"
            if why or path not in tree.listings:
                layout.pieces.append(Piece(path, why, mode, uid, gid, flags))
            else:
                _walk(path, tree, owner, covered, layout)


def _entries(directory: str, tree: HostTree, covered: Covered) -> Iterable[Entry]:
    listing = tree.listings[directory]
    if listing is not None:
        return listing
    # Too long to be listed, but no more than this of it is seen in the end.
    top = directory.rstrip("/") + "/"
    names = {one[len(top) :].partition("/")[0] for one in covered.needed if one.startswith(top)}
    found = [(name, tree.directories.get(top + name)) for name in sorted(names)]
    return [entry._replace(name=name) for name, entry in found if entry is not None]


def _refusal(kind: str) -> str:
    if may_hang(kind):
        return f"no overlays of {kind}, which may hang"
    if kind in _UNFIT:
        return f"the kernel has no overlays of {kind}"
    if kind in _KERNEL:
        return "the kernel's"
    return ""


def _too_many(path: str, tree: HostTree, covered: Covered) -> str:
    if path not in tree.listings:
        return ""
    listing = tree.listings[path]
    if listing is None:
        if covered.in_part(path):
            return ""
        return "something is mounted in it, and it can't be listed"
    count = sum(
        entry.kind == "dir" and not covered.hides(f"{path.rstrip('/')}/{entry.name}")
        for entry in listing
    )
    if count > MANY_OVERLAYS:
        return f"something is mounted in it, and it has {count} directories"
    mounted = sum(below(one, path) and not covered.hides(one) for one in tree.mounts)
    if mounted > MANY_OVERLAYS:
        return f"{mounted} file systems are mounted in it"
    return ""


def piece_of(path: str, pieces: list[Piece]) -> Piece | None:
    """Return the piece that *path* is in, None if there is none."""
    found = [piece for piece in pieces if below(path, piece.path)]
    return max(found, key=lambda piece: len(piece.path), default=None)


def add_place(path: str, tree: HostTree, owner: Owner, layout: Layout) -> None:
    """Make sure that *path* exists, to mount on it what the host has there."""
    piece = piece_of(path, layout.pieces)
    if piece is not None and piece.path not in layout.made:
        return
    top, entries = ("/", layout.entries) if piece is None else (piece.path, layout.made[piece.path])
    there = {entry[0] for entry in entries}
    for one in (*ancestors(path), path):
        entry = tree.directories.get(one)
        if below(one, top) and one not in there and entry is not None:
            kind = "dir" if entry.kind == "dir" else "file"
            entries.append((one, kind, *owner.seen(entry), ""))


def _set_apart(path: str, tree: HostTree, owner: Owner, layout: Layout) -> None:
    piece = piece_of(path, layout.pieces)
    if owner.all_ids or piece is None or piece.why or piece.path == path:
        return
    if piece.path in layout.made:  # something is mounted in it
        return
    between = [one for one in (*ancestors(path), path) if below(one, piece.path)][1:]
    entries = [tree.directories.get(one) for one in between]
    if any(entry is None or entry.kind != "dir" or not entry.searchable for entry in entries):
        return  # nor may the kernel look through what is closed to this user
    if any(entry is not None and not owner.has(entry) for entry in entries):
        mode, uid, gid = owner.seen(tree.directories[path])
        layout.pieces.append(Piece(path, "", mode, uid, gid, piece.flags))
