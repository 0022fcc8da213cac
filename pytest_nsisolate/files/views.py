"""Make a sandbox's view of the host's files: operations for ``fs``, ``rootfs`` and ``hide``.

Made in the runner out of facts; a pure function of them but for `Facts.read`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux.kernel_files import read_sysctl
from pytest_nsisolate.sandbox.operations import mounts, roots
from pytest_nsisolate.sandbox.operations.namespaces import read_map
from pytest_nsisolate.sandbox.operations.plan import PRIVATE, View

from . import foreign_owners, hide, host_tree, overlay, rootfs
from .overlay import Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nsisolate.sandbox.operations.plan import Operation
    from pytest_nsisolate.spec.spec import Spec

    from .host_tree import HostTree
    from .overlay import Layout


#: So many ids are mapped where all are.
_ALL_IDS = 0xFFFFFFFF


class Wish(NamedTuple):
    """Of a spec, what makes a view; its paths are absolute.

    Attributes:
        shown: what is visible in the private directories.
        mounted: directories that the sandbox mounts something on, besides the usual ones.
    """

    fs: str
    rootfs: str | None
    writable: tuple[str, ...]
    hide: tuple[str, ...]
    propagation: str
    tmpfs: int
    shown: tuple[str, ...] = ()
    mounted: tuple[str, ...] = ()
    pid_max: int = 0

    @classmethod
    def of(
        cls,
        spec: Spec,
        shown: Sequence[str] = (),
        mounted: Sequence[str] = (),
        pid_max: int = 0,
    ) -> Wish | None:
        """Return the wish of *spec*; None if it leaves the host's tree as it is.

        Args:
            pid_max: see `plan.build_operations`.
        """
        if not spec.sealed and not spec.hide:
            return None
        wish = (spec.fs, spec.rootfs, spec.writable, spec.hide)
        return cls(*wish, spec.propagation, spec.tmpfs, tuple(shown), tuple(mounted), pid_max)

    @property
    def kept(self) -> tuple[str, ...]:
        """What stays writable, resolved; none below another."""
        return _topmost(self.kept_all)

    @property
    def kept_all(self) -> tuple[str, ...]:
        """What stays writable, resolved."""
        return tuple(map(os.path.realpath, self.writable))


class Facts(NamedTuple):
    """What all views of a session are made of.

    Attributes:
        owner: of the sandboxes.
        tree: the host's.
        needed: absolute paths that tests need, wherever they are.
        apart: directories of this user that tests most likely write to.
        basetemp: pytest's.
        foreign: what stands in for files of other owners, once it has been looked for.
    """

    owner: Owner
    tree: HostTree
    needed: list[str]
    apart: list[str]
    basetemp: str | None
    foreign: list[dict[str, tuple[str, str, int, int, int, str]]]

    @classmethod
    def read(
        cls, needed: list[str], apart: list[str], basetemp: str | None, *, all_ids: bool
    ) -> Facts:
        """Read the facts of the host."""
        paths = sorted({form for path in needed for form in _forms(path)})
        own = sorted({form for path in apart for form in _forms(path)} - {"/"})
        python, _ = rootfs.python_paths()
        tree = host_tree.read_tree(
            [*paths, *own, *(one for path in python for one in _forms(path))]
        )
        unsure = _looks_like_others(os.geteuid())
        owner = Owner(os.geteuid(), os.getegid(), all_ids, unsure, tuple(os.getgroups()))
        return cls(owner, tree, paths, own, basetemp, [])


def _looks_like_others(uid: int) -> bool:
    """Return whether files of unknown owners seem to be this user's, too (user_namespaces(7))."""
    try:
        overflow = int(read_sysctl("kernel.overflowuid") or "")
        known = sum(one.size for one in read_map("uid_map"))
    except (OSError, ValueError):
        return False
    return uid == overflow and known < _ALL_IDS


def _forms(path: str) -> list[str]:
    if not path or not os.path.isabs(path) or not os.path.exists(path):
        return []
    return [os.path.realpath(path), os.path.normpath(path)]


def make(wish: Wish, facts: Facts) -> View:
    """Make the view for a wish."""
    facts = facts._replace(tree=host_tree.look(facts.tree, [*wish.shown, *wish.kept]))
    if wish.rootfs is not None or wish.fs == "overlay":
        return _new_root(wish, facts)
    return _host_root(wish, facts)


def _host_root(wish: Wish, facts: Facts) -> View:
    ground: list[Operation] = []
    hidden = _hidden(wish, facts)
    sealed = wish.fs == "readonly"
    kept = wish.kept if sealed else ()
    ground += [mounts.Hold(path) for path in kept]
    if sealed:
        ground += [roots.Seal("/"), roots.SpareProc()]
    ground += [mounts.Attach(path, readonly=False) for path in kept]
    # What is hidden in one of them is hidden still; what is to be written to in what is
    # hidden is brought back.
    ground += hide.covers(hidden, facts.tree)
    return View(
        ground=tuple(ground),
        propagation=wish.propagation,
        sealed=sealed,
        proc=_fresh_proc(wish, facts, spare=False) if sealed else None,
        hosts=not _covered("/etc/hosts", hidden),
    )


def _new_root(wish: Wish, facts: Facts) -> View:
    owner, tree = facts.owner, facts.tree
    overlays = wish.fs == "overlay"
    hidden = _hidden(wish, facts)
    lower = ""
    program: tuple[Operation, ...] = ()
    hosts = True
    kept = wish.kept
    if wish.rootfs is not None:
        mounted = [path for path in (facts.basetemp, *wish.mounted) if path is not None]
        other = rootfs.probe(wish.rootfs, facts.needed, [*mounted, *kept])
        places = {**dict.fromkeys(mounted, "dir"), **{path: _kind(path, tree) for path in kept}}
        layout = rootfs.lay_out(other, tree, owner, places, overlays=overlays)
        lower = other.directory
        program = (roots.TryProgram((sys.executable, "-I", "-S", "-c", "pass")),)
        hosts = os.path.isfile(lower + "/etc/hosts") and not os.path.islink(lower + "/etc/hosts")
    else:
        covered = overlay.Covered(tuple(PRIVATE), (*facts.needed, *wish.shown))
        layout = overlay.lay_out(tree, owner, covered, facts.apart)
        for path in kept:
            overlay.add_place(path, tree, owner, layout)
    if overlays and not owner.all_ids:
        if not facts.foreign:
            facts.foreign.append(foreign_owners.find(facts.apart, tree, owner))
        foreign_owners.add(facts.foreign[0], tree, owner, layout, kept)
    masks = hide.apply(layout, hidden, tree, owner)
    ground: list[Operation] = [mounts.Propagation("private"), roots.Stage()]
    for number, path in enumerate(kept):
        ground.append(roots.Keep(path, number))
        ground += hide.covers(hidden, tree, path, roots.kept(number))
    ground += [roots.Seal("/old"), *masks.covers, roots.Skeleton(0, tuple(layout.entries))]
    enter, more = _pieces(layout, masks, lower, overlays=overlays)
    if overlays:
        enter.insert(0, roots.Uppers(wish.tmpfs))
    enter += [roots.BindWritable(path, number) for number, path in enumerate(kept)]
    return View(
        ground=(*ground, *more),
        enter=(*enter, roots.EnterRoot()),
        leave=(roots.LeaveRoot(), *program),
        sealed=True,
        proc=_fresh_proc(wish, facts, spare=True),
        hosts=hosts and not _covered("/etc/hosts", hidden),
    )


def _fresh_proc(wish: Wish, facts: Facts, *, spare: bool) -> roots.FreshProc | None:
    # To the kernel, the settings of the machine are root's to write.
    return roots.FreshProc(spare, wish.pid_max) if facts.owner.uid == 0 else None


def _pieces(
    layout: Layout, masks: hide.Masks, lower: str, *, overlays: bool
) -> tuple[list[Operation], list[Operation]]:
    root = layout.entries[0]
    # A root made of the skeleton alone is writable even if it need not be: one layer
    # is no overlay.
    enter: list[Operation] = [
        roots.Overlay("/", lower, 0, False, overlays, root[2], root[3], root[4], 0)  # noqa: FBT003 -- fields of a value
    ]
    ground: list[Operation] = []
    for number, piece in enumerate(layout.pieces, 1):
        if piece.why:
            enter.append(roots.BindTree(piece.path, piece.path, piece.why))
            continue
        entries = masks.entries.get(piece.path)
        if entries:
            top = len(piece.path)
            cut = tuple((entry[0][top:] or "/", *entry[1:]) for entry in entries)
            ground.append(roots.Skeleton(number, cut))
        below = "" if piece.path in layout.made else piece.path
        values = (number, bool(entries), True, piece.mode, piece.uid, piece.gid, piece.flags)
        enter.append(roots.Overlay(piece.path, below, *values))
    return enter, ground


def _hidden(wish: Wish, facts: Facts) -> hide.Hidden:
    wanted = {os.path.realpath(path) for path in wish.hide}
    if wish.rootfs is not None:
        wanted = {path for path in wanted if _is_in_root(path, wish, facts)}
    back = tuple(path for path in _topmost(tuple(facts.needed)) if path not in wanted)
    kept = tuple(path for path in wish.kept_all if path not in wanted)
    paths = _to_hide(wanted, (*back, *kept))
    places = [*PRIVATE, "/dev/mqueue", *wish.mounted]
    return hide.Hidden(
        paths=paths,
        files=frozenset(path for path in paths if not _is_directory(path, wish)),
        back=back,
        kept=kept,
        places=(*places, facts.basetemp) if facts.basetemp else tuple(places),
    )


def _is_in_root(path: str, wish: Wish, facts: Facts) -> bool:
    """Return whether another root has *path*, by itself or from the host."""
    shown = [*facts.needed, *wish.kept_all]
    around = any(overlay.below(path, one) or overlay.below(one, path) for one in shown)
    return around or os.path.lexists(f"{wish.rootfs}{path}")


def _to_hide(wanted: set[str], back: tuple[str, ...]) -> tuple[str, ...]:
    """Return *wanted* without what lies in another one, unless *back* shows it again."""
    kept: list[str] = []
    for path in sorted(wanted):
        above = [one for one in kept if overlay.below(path, one)]
        if all(
            any(overlay.below(path, one) and overlay.below(one, top) for one in back)
            for top in above
        ):
            kept.append(path)
    return tuple(kept)


def _kind(path: str, tree: HostTree) -> str:
    entry = tree.directories.get(path)
    return "dir" if entry is not None and entry.kind == "dir" else "file"


def _is_directory(path: str, wish: Wish) -> bool:
    return os.path.isdir(path) or os.path.isdir((wish.rootfs or "") + path)


def _covered(path: str, hidden: hide.Hidden) -> bool:
    return any(overlay.below(path, one) for one in hidden.paths)


def _topmost(paths: tuple[str, ...]) -> tuple[str, ...]:
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(overlay.below(path, one) for one in kept):
            kept.append(path)
    return tuple(kept)
