"""Use another root (``rootfs=``): find what it needs from the host, and where that is put.

Python and the tests come with the test process: it is a fork of the runner, and goes on
reading its modules from the paths they have on the host.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.sandbox.operations.plan import PRIVATE
from pytest_nsisolate.spec.paths import TOO_WIDE

from .host_tree import Entry, ancestors, describe
from .overlay import Layout, Owner, Piece, below
from .rootfs_libraries import libraries

if TYPE_CHECKING:
    from .host_tree import HostTree

#: The devices of a foreign root.
DEVICES = tuple(
    f"/dev/{name}" for name in ("full", "null", "ptmx", "random", "tty", "urandom", "zero")
)
_MOUNTED = ("/dev", "/proc", "/sys", *PRIVATE[:2])


class Foreign(NamedTuple):
    """The facts of one foreign root.

    Attributes:
        directory: where it is on the host, resolved.
        bound: paths of the host that are bound into it; none below another.
        links: symbolic links that lead to the interpreter, and to libraries of it that the
            other system lacks.
        libraries: of this Python that it lacks.
        there: what the directories that matter are in it, by their path inside.
    """

    directory: str
    bound: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    libraries: tuple[str, ...]
    there: dict[str, Entry]


def python_paths() -> tuple[list[str], list[tuple[str, str]]]:
    """Return the paths of this interpreter, and the links that lead to its program."""
    paths = [sys.prefix, sys.base_prefix, sys.exec_prefix]
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths += [sysconfig.get_path(name) for name in names]
    links: list[tuple[str, str]] = []
    program = os.path.abspath(sys.executable)
    while os.path.islink(program) and len(links) < 40:
        target = os.readlink(program)
        links.append((program, target))
        program = os.path.normpath(os.path.join(os.path.dirname(program), target))
    paths.append(program)
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
            mapped = {
                line.rstrip("\n").split(None, 5)[-1] for line in stream if "libpython" in line
            }
    except OSError:
        mapped = set()
    return paths + sorted(path for path in mapped if path.startswith("/")), links


def probe(directory: str, needed: list[str], places: list[str]) -> Foreign:
    """Collect the facts about the root in *directory*.

    Args:
        needed: paths that tests need, of whatever kind.
        places: what else the sandbox mounts something on.
    """
    directory = os.path.realpath(directory)
    paths, links = python_paths()
    found: list[str] = []
    for path in sorted({form for one in (*paths, *needed) for form in _forms(one)}):
        if path not in TOO_WIDE and not any(below(path, one) for one in found):
            found.append(path)
    there: dict[str, Entry] = {}
    for path in {"/", *found, *places, *_MOUNTED, *(path for path, _ in links)}:
        _look(directory, path, there)
    missing = []
    for library in libraries():
        folder = os.path.dirname(library.path)
        names = (os.path.basename(library.path), *library.names)
        if any(below(library.path, path) for path in found):
            continue
        if not any(os.path.lexists(f"{directory}{folder}/{name}") for name in names):
            missing.append(library.path)
            links += [(f"{folder}/{name}", names[0]) for name in library.names]
            _look(directory, library.path, there)
    outer = tuple(one for one in links if not any(below(one[0], path) for path in found))
    return Foreign(directory, tuple(found), outer, tuple(missing), there)


def _look(directory: str, path: str, there: dict[str, Entry]) -> None:
    for one in (*ancestors(path), path):
        try:
            there[one] = describe(directory + one)
        except OSError:
            continue


def _forms(path: str) -> list[str]:
    if not path or not os.path.isabs(path) or not os.path.exists(path):
        return []
    return [os.path.realpath(path), os.path.normpath(path)]


def lay_out(
    foreign: Foreign, tree: HostTree, owner: Owner, places: dict[str, str], *, overlays: bool
) -> Layout:
    """Lay out the new root: the skeleton is what *foreign* lacks to bind things on.

    Args:
        places: what the sandbox mounts something on, "dir" or "file" by path.
    """
    layout = Layout([("/", "dir", *owner.seen(foreign.there["/"]), "")], [], {}, {})
    maker = _Maker(foreign, owner, layout)
    for path in _MOUNTED:
        maker.place(path, "dir", 0o1777 if path in PRIVATE else 0o755)
    for path, kind in places.items():
        maker.place(path, kind)
    for path in foreign.libraries:
        maker.add(path, "copy", target=path)
    for path, target in foreign.links:
        if path not in foreign.there:
            maker.add(path, "link", target=target)
    for path in foreign.bound:
        entry = tree.directories.get(path)
        if entry is None:
            continue
        mode, uid, gid = owner.seen(entry)
        kind = "dir" if entry.kind == "dir" else "file"
        maker.place(path, kind)
        why = "" if overlays and kind == "dir" and entry.searchable else "of the host"
        if any(one != path and below(one, path) for one in tree.mounts):
            why = why or "of the host, and something is mounted in it"
        layout.pieces.append(Piece(path, why, mode, uid, gid, 0))
    for path in ("/dev", "/sys"):
        layout.pieces.append(Piece(path, "of the host", 0o755, -1, -1, 0))
    layout.pieces.sort()
    return layout


class _Maker:
    """Entries of the skeleton, each made once, with the directories above it."""

    def __init__(self, foreign: Foreign, owner: Owner, layout: Layout) -> None:
        self._foreign = foreign
        self._owner = owner
        self._layout = layout
        self._made = {"/"}

    def place(self, path: str, kind: str, mode: int = 0o755) -> None:
        """Make sure that something of that *kind* exists at *path*, to mount on."""
        there = self._foreign.there.get(path)
        if there is not None and there.kind == kind and not _through_link(path, self._foreign):
            return
        self.add(path, kind, mode)

    def add(self, path: str, kind: str, mode: int = 0o755, target: str = "") -> None:
        """Add an entry to the skeleton, and the directories above it."""
        for one in ancestors(path):
            if one not in self._made:
                self._made.add(one)
                entry = self._foreign.there.get(one)
                known = entry is not None and entry.kind == "dir"
                mode_of, *ids = self._owner.seen(entry) if known and entry else (0o755, -1, -1)
                # Something of the host lies in it, which its owner here has to reach.
                # Nor can the kernel look through a directory that is closed to this user.
                kind_of = "dir" if entry is None or entry.searchable else "opaque"
                self._layout.entries.append((one, kind_of, mode_of | 0o100, ids[0], ids[1], ""))
        if path not in self._made:
            self._made.add(path)
            self._layout.entries.append((path, kind, mode, -1, -1, target))


def _through_link(path: str, foreign: Foreign) -> bool:
    return any(
        one in foreign.there and foreign.there[one].kind == "link" for one in ancestors(path)
    )
