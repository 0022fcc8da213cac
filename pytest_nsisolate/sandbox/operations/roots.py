"""Operations that give a sandbox another view of the host's files, as values.

Two kinds. Those of a *ground* run once, in a mount namespace that the keeper then
copies for each sandbox: the sandbox's user namespace is another one, so the kernel
locks these mounts together, and not even root inside can take one away or make it
writable again (mount_namespaces(7)). The others run in each sandbox.

A ground with `Stage` has an empty root, and the host's tree at /old.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from . import root_steps
from .root_steps import MASK, NEW, OLD, SKELETON, WRITABLE
from .steps import Step


def old(path: str) -> bytes:
    """Return where the host's *path* is on a stage."""
    return OLD + os.fsencode(path) if path != "/" else OLD


def new(path: str) -> bytes:
    """Return where the sandbox's *path* is put together on a stage."""
    return NEW + os.fsencode(path) if path != "/" else NEW


class Stage(NamedTuple):
    """An empty root, to put a new one together in."""

    def describe(self) -> str:
        return "once: make an empty root, with the host's tree at /old"

    def steps(self) -> list[Step]:
        return [Step(root_steps.stage, ())]


class Seal(NamedTuple):
    """Make a whole tree read-only, mount by mount."""

    top: str

    def describe(self) -> str:
        return f"once: make {self.top} read-only, with all that is mounted in it"

    def steps(self) -> list[Step]:
        return [Step(root_steps.seal, (os.fsencode(self.top),))]


class SpareProc(NamedTuple):
    """Cover the /proc of the session."""

    def describe(self) -> str:
        return "once: cover /proc"

    def steps(self) -> list[Step]:
        return [Step(root_steps.spare_proc, ())]


class FreshProc(NamedTuple):
    """A fresh /proc for a sandbox of root. The fields are those of `root_steps.fresh_proc`."""

    spare: bool
    pid_max: int = 0

    def describe(self) -> str:
        setting = f"kernel.pid_max = {self.pid_max} and " if self.pid_max else ""
        return f"mount proc on /proc, with {setting}/proc/sys (but /proc/sys/net) read-only"

    def steps(self) -> list[Step]:
        return [Step(root_steps.fresh_proc, (self.spare, str(self.pid_max)))]


def kept(number: int) -> str:
    """Return where a stage has the tree that `Keep` took under this number."""
    return os.fsdecode(WRITABLE + b"/%d" % number)


class Keep(NamedTuple):
    """On a stage: keep the tree at *path* writable, under a number."""

    path: str
    number: int

    def describe(self) -> str:
        return f"once: pick up {self.path}, writable"

    def steps(self) -> list[Step]:
        return [Step(root_steps.keep, (old(self.path), os.fsencode(kept(self.number))))]


class Skeleton(NamedTuple):
    """On a stage: the files above all overlays (number 0), or what masks parts of one."""

    number: int
    entries: tuple[tuple[str, str, int, int, int, str], ...]

    def describe(self) -> str:
        kinds = [entry[1] for entry in self.entries]
        if self.number:
            hidden = [entry[0] for entry in self.entries if entry[1] in ("opaque", "file")]
            parts = [f"hide {', '.join(map(repr, hidden))}"] if hidden else []
            if copied := kinds.count("copy"):
                parts.append(f"copy {copied} files of other owners")
            return f"once: {' and '.join(parts) or 'make directories'} in overlay {self.number}"
        return (
            f"once: make the upper directories: {kinds.count('dir')} directories, "
            f"{kinds.count('link')} links, {kinds.count('file') + kinds.count('copy')} files"
        )

    def steps(self) -> list[Step]:
        top = mask(self.number) if self.number else SKELETON
        entries = [
            (
                name,
                kind,
                mode,
                uid,
                gid,
                os.fsdecode(old(target)) if _copied(kind, target) else target,
            )
            for name, kind, mode, uid, gid, target in self.entries
        ]
        return [Step(root_steps.build_tree, (top, entries))]


def _copied(kind: str, target: str) -> bool:
    return kind != "link" and bool(target)


def mask(number: int) -> bytes:
    """Return where the mask of the overlay with this number is."""
    return MASK + b"/%d" % number


class Cover(NamedTuple):
    """Hide *path*. *inside*: see `root_steps.cover`."""

    path: str
    inside: tuple[tuple[str, bool], ...]
    directory: bool

    def describe(self) -> str:
        return f"once: hide {self.path}"

    def steps(self) -> list[Step]:
        arguments = (os.fsencode(self.path), list(map(tuple, self.inside)), self.directory)
        return [Step(root_steps.cover, arguments)]


class Uppers(NamedTuple):
    """A tmpfs for what is written to overlays, of *size* bytes."""

    size: int

    def describe(self) -> str:
        return f"mount tmpfs for what is written ({self.size >> 10} KiB)"

    def steps(self) -> list[Step]:
        return [Step(root_steps.uppers, (self.size,))]


class Overlay(NamedTuple):
    """An overlay at *path* of the new root.

    Attributes:
        path: where.
        lower: the host's directory; "" for the skeleton alone.
        number: its own one; 0 is the root, which has the skeleton on top.
        masked: whether it has a mask.
        writable: whether it can be written to.
        mode, uid, gid: of its root; an id of -1 is whoever builds the sandbox.
        flags: of the mount, such as MS_NOEXEC.
    """

    path: str
    lower: str
    number: int
    masked: bool
    writable: bool
    mode: int
    uid: int
    gid: int
    flags: int

    def describe(self) -> str:
        of = f" of {self.lower}" if self.lower not in ("", self.path) else ""
        kind = "overlay" if self.writable else "read-only overlay"
        return f"mount {kind}{of} on {self.path}{' (parts hidden)' if self.masked else ''}"

    def steps(self) -> list[Step]:
        lowers = []
        if self.number == 0:
            lowers.append(SKELETON)
        elif self.masked:
            lowers.append(mask(self.number))
        if self.lower:
            lowers.append(old(self.lower))
        upper = b"%d" % self.number if self.writable else b""
        owner = (self.uid, self.gid)
        arguments = (new(self.path), tuple(lowers), upper, self.mode, owner, self.flags)
        return [Step(root_steps.overlay, arguments)]


class BindTree(NamedTuple):
    """Show the tree *source* of the host in the new root, read-only; *why* no overlay."""

    source: str
    path: str
    why: str

    def describe(self) -> str:
        return f"bind {self.path} read-only: {self.why}"

    def steps(self) -> list[Step]:
        return [Step(root_steps.bind_tree, (old(self.source), new(self.path)))]


class BindWritable(NamedTuple):
    """Show what `Keep` picked up under *number*."""

    path: str
    number: int

    def describe(self) -> str:
        return f"bind {self.path}, writable on the host"

    def steps(self) -> list[Step]:
        source = os.fsencode(kept(self.number))
        return [Step(root_steps.bind_tree, (source, new(self.path)))]


class EnterRoot(NamedTuple):
    """pivot_root(2) into the new root."""

    def describe(self) -> str:
        return "enter the new root"

    def steps(self) -> list[Step]:
        return [Step(root_steps.enter_root, ())]


class LeaveRoot(NamedTuple):
    """Let go of the root before: nothing leads there any more."""

    def describe(self) -> str:
        return "leave the old root"

    def steps(self) -> list[Step]:
        return [Step(root_steps.leave_root, ())]


class TryProgram(NamedTuple):
    """Start a program, in the first sandbox of a plan only (`plan.Program.once`)."""

    words: tuple[str, ...]

    def once(self) -> bool:
        """Mark the operation: only the first sandbox of a plan runs it."""
        return True

    def describe(self) -> str:
        return f"in the first sandbox: see that {self.words[0]} can be started"

    def steps(self) -> list[Step]:
        return [Step(root_steps.start_program, ([os.fsencode(word) for word in self.words],))]
