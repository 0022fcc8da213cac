"""Hide paths: by covers over what is bound, and by masks in what is an overlay.

Pure. A cover is a mount in a ground, which the sandbox can't take away; a mask is a
lower layer of an overlay that stands above the host's directory. What must stay
visible below a hidden directory gets a place there to be mounted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.sandbox.operations import mounts, roots

from .host_tree import Entry, ancestors
from .overlay import Layout, Owner, Piece, below, piece_of

if TYPE_CHECKING:
    from pytest_nsisolate.sandbox.operations.plan import Operation

    from .host_tree import HostTree


class Hidden(NamedTuple):
    """What is to be hidden, with every path resolved.

    Attributes:
        paths: parents first; one below another only in what is brought back there.
        files: those of them that are no directories.
        back: directories and files that stay visible (the test suite, Python).
        kept: directories and files that are to be written to on the host.
        places: directories that the sandbox mounts something on.
    """

    paths: tuple[str, ...]
    files: frozenset[str]
    back: tuple[str, ...]
    kept: tuple[str, ...]
    places: tuple[str, ...]

    def inside(self, path: str, tree: HostTree) -> tuple[tuple[str, bool], ...]:
        """Return the places needed in *path*, relative to it, and whether each is a directory."""
        found = []
        for one in sorted({*self.back, *self.kept, *self.places}):
            if one != path and below(one, path):
                entry = tree.directories.get(one)
                directory = one in self.places or (entry is not None and entry.kind == "dir")
                found.append((one[len(path) :].lstrip("/"), directory))
        return tuple(found)


def covers(hidden: Hidden, tree: HostTree, top: str = "", place: str = "") -> list[Operation]:
    """Return the covers where the host's tree, or a part of it, is shown as it is.

    From the deepest up, so that what is brought back has its own ones.

    Args:
        top: of the part; what is hidden in it, and not it.
        place: where that part is.
    """
    found: list[Operation] = []
    for path in reversed(hidden.paths):
        if top and (path == top or not below(path, top)):
            continue
        back = [
            place + one[len(top) :]
            for one in sorted({*hidden.back, *hidden.kept})
            if below(one, path)
        ]
        found += [mounts.Hold(one) for one in back]
        found.append(_cover(path, place + path[len(top) :], hidden, tree))
        found += [mounts.Attach(one, readonly=False) for one in back]
    return found


def _cover(path: str, place: str, hidden: Hidden, tree: HostTree) -> roots.Cover:
    return roots.Cover(place, hidden.inside(path, tree), path not in hidden.files)


class Masks(NamedTuple):
    """What hiding adds to a layout: covers on a stage, and entries of masks by overlay."""

    covers: list[roots.Cover]
    entries: dict[str, list[tuple[str, str, int, int, int, str]]]


def apply(layout: Layout, hidden: Hidden, tree: HostTree, owner: Owner) -> Masks:
    """Hide in *layout*, which is changed; but what is in a writable tree (`covers`)."""
    masks = Masks([], {**layout.masks, **layout.made})
    for path in hidden.paths:
        if any(path != one and below(path, one) for one in hidden.kept):
            continue
        layout.pieces[:] = [piece for piece in layout.pieces if not below(piece.path, path)]
        piece = piece_of(path, layout.pieces)
        if piece is None:
            _in_skeleton(path, layout, hidden, tree, owner)
        elif piece.why:
            masks.covers.append(_cover(path, "/old" + path, hidden, tree))
        else:
            entries = masks.entries.setdefault(piece.path, _parents(piece.path, tree, owner)[-1:])
            entries[:] = [entry for entry in entries if not below(entry[0], path)]
            _add(path, piece.path, entries, hidden, tree, owner)
        for back in hidden.back:
            if back != path and below(back, path):
                layout.pieces.append(_back(back, tree, owner))
    layout.pieces.sort()
    return masks


def _back(path: str, tree: HostTree, owner: Owner) -> Piece:
    entry = tree.directories.get(path)
    why = "" if entry is not None and entry.kind == "dir" else "a file"
    if any(one != path and below(one, path) for one in tree.mounts):
        why = "something is mounted in it"
    mode, uid, gid = owner.seen(entry or Entry("", "dir", 0o755, 0, 0))
    return Piece(path, why, mode, uid, gid, 0)


def _in_skeleton(path: str, layout: Layout, hidden: Hidden, tree: HostTree, owner: Owner) -> None:
    kept = [entry for entry in layout.entries if not below(entry[0], path)]
    layout.entries[:] = kept
    _add(path, "/", layout.entries, hidden, tree, owner)


def _parents(path: str, tree: HostTree, owner: Owner) -> list[tuple[str, str, int, int, int, str]]:
    unknown = Entry("", "dir", 0o755, 0, 0)
    return [
        (one, "dir", *owner.seen(tree.directories.get(one, unknown)), "")
        for one in (*ancestors(path), path)
    ]


def _add(  # noqa: PLR0917 -- what all of `apply` has
    path: str,
    top: str,
    entries: list[tuple[str, str, int, int, int, str]],
    hidden: Hidden,
    tree: HostTree,
    owner: Owner,
) -> None:
    """Add entries that hide *path* in the directory *top*, which is a layer of its own."""
    there = {entry[0] for entry in entries}
    entries.extend(
        entry
        for entry in _parents(path, tree, owner)[:-1]
        if below(entry[0], top) and entry[0] not in there
    )
    if path in hidden.files:
        entries.append((path, "file", 0o444, -1, -1, ""))
        return
    entries.append((path, "opaque", 0o755, -1, -1, ""))
    made = {path}
    for name, directory in hidden.inside(path, tree):
        place = f"{path}/{name}"
        for one in (*ancestors(place), place):
            if one != path and below(one, path) and one not in made:
                made.add(one)
                kind = "dir" if directory or one != place else "file"
                entries.append((one, kind, 0o755, -1, -1, ""))
