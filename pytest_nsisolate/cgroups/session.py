"""The cgroups of one session: a place in each hierarchy, made once, and swept after a kill.

    base of each hierarchy /  nsisolate-<uid>-<slot>  /  test-<n>

The base is the runner's own cgroup in v1, and in v2 what `delegation` got. The slot's
lock says whose directory it is, and a flock on the directory itself holds that also
between processes that don't see each other's locks (another /run, a container).

Guarantees: opening raises nothing for a controller that can't be had, `Session.errors`
says which and why, and a group that needs it raises that; closing leaves no cgroup,
or says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any, final

from pytest_nsisolate.core import locks
from pytest_nsisolate.core.linux import kernel_files
from pytest_nsisolate.spec.limits import LimitError

from . import delegation
from . import layout as cgroup_layout
from .group import BACKENDS, Group, Part, Plan, plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_nsisolate.core.locks import Slot
    from pytest_nsisolate.spec.limits import Limits

    from .layout import Hierarchy, Layout

#: What accounts without limiting: joined where it can be had. The freezer is for the end.
ACCOUNTING = frozenset({"memory", "pids", "cpuacct", "io", "freezer"})
#: How long processes that have been killed may take to go, in seconds; after that a group
#: is emptied: something froze what is in it, or came in from outside.
_LINGERS = 1.0
#: How long they take at least, in seconds.
_BUSY = 0.02
#: How the groups of tests are named, before a number.
GROUP_PREFIX = "test-"
#: How long to wait for cgroups whose processes have been killed, in seconds.
PATIENCE = 5.0


@dataclasses.dataclass(frozen=True)
class Handover:
    """What another process needs to remove the cgroups of a session, once nothing runs in them.

    Attributes:
        slot: directory, number, and descriptor of the lock.
        locks: descriptors on the directories.
        directories: of the session, in each hierarchy.
        claim: base, leaf and enabled controllers of its `delegation.Claim`.
    """

    slot: tuple[str, int, int]
    locks: tuple[int, ...]
    directories: tuple[str, ...]
    claim: tuple[str, str | None, tuple[str, ...]] | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the fields in a form that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def of_wire(cls, data: dict[str, Any]) -> Handover:
        """Take what JSON made of `to_wire`."""
        claim = data["claim"]
        return cls(
            slot=tuple(data["slot"]),
            locks=tuple(data["locks"]),
            directories=tuple(data["directories"]),
            claim=None if claim is None else (claim[0], claim[1], tuple(claim[2])),
        )

    def descriptors(self) -> list[int]:
        """Return the descriptors that the other process has to inherit."""
        return [self.slot[2], *self.locks]

    def remove(self, deadline: float) -> list[str]:
        """Remove the cgroups, close the locks and give back the claim.

        Returns:
            the directories that could not be removed until *deadline* (monotonic).
        """
        left = remove_trees(self.directories, deadline)
        for fd in self.locks:
            os.close(fd)
        if self.claim is not None:
            base, leaf, enabled = self.claim
            delegation.Claim(base, leaf=leaf, enabled=list(enabled)).give_back()
        locks.Slot(*self.slot).release(clean=not left)
        return left


class _Taken(Exception):
    """Another session lives in a directory of that name."""


@final
class Session:
    """See the module.

    Args:
        required: controllers that the session's limits take.
        welcome: those that would be good to have.
        layout, runtime: for tests: another layout of hierarchies, another place for slots.
    """

    def __init__(
        self,
        required: frozenset[str],
        *,
        welcome: frozenset[str] = ACCOUNTING,
        layout: Layout | None = None,
        runtime: str | None = None,
        companions: Sequence[int] = (),
    ) -> None:
        self._companions = companions
        self.layout = layout or cgroup_layout.find()
        self.errors: dict[str, LimitError] = {}
        self._welcome = welcome
        self._numbers = 0
        self._plans: dict[int, Plan] = {}  # by identity: a plan keeps its limits
        self._locks: list[int] = []
        self._lingering: list[tuple[float, Group]] = []
        self._claim: delegation.Claim | None = None
        self._spared: frozenset[str] = frozenset()
        self.slot: Slot | None = None
        self.parts: list[Part] = []
        bases = self._bases(required, required | welcome)
        try:
            self._settle(bases, runtime)
        except OSError as error:
            # No place for locks: nothing may be made that nobody would find again.
            for controller in required | welcome:
                self._refuse(controller, error.errno or errno.EIO, error.filename or "")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # making it

    def _settle(
        self, bases: dict[Hierarchy, tuple[str, frozenset[str]]], runtime: str | None
    ) -> None:
        """Take the first slot whose directories are unused, and make them."""
        for slot in locks.free(runtime):
            self.slot = slot
            try:
                self.parts = self._make(slot, bases)
            except _Taken:
                self._unlock()
                slot.release(clean=not slot.made())
            except BaseException:
                self._unlock()
                self.slot = None
                slot.release(clean=False)
                raise
            else:
                return

    def _bases(
        self, required: frozenset[str], wanted: frozenset[str]
    ) -> dict[Hierarchy, tuple[str, frozenset[str]]]:
        """Return where to build, in each hierarchy that is needed, and for which controllers."""
        places: dict[Hierarchy, set[str]] = {}
        for controller in sorted(wanted):
            found = self.layout.where(controller)
            if found is not None:
                places.setdefault(found, set()).add(controller)
            else:
                path = "/proc/cgroups" if self.layout.hierarchies else "/proc/self/mountinfo"
                self._refuse(controller, errno.EOPNOTSUPP, path)
        # A v2 that has no controller for this session is left alone.
        bases = {}
        for place, names in places.items():
            if place.version == 2 and not names & required and not self._has_controllers(place):
                continue
            if place.version == 1:
                bases[place] = (place.own, frozenset(names))
                continue
            self._claim = delegation.claim(place, frozenset(names), self._companions)
            self.errors.update(self._claim.errors)
            bases[place] = (self._claim.base, frozenset(names) - self._claim.errors.keys())
        return bases

    def _has_controllers(self, place: Hierarchy) -> bool:
        names = (kernel_files.read(place.own + "/cgroup.controllers") or "").split()
        return not {"memory", "cpu", "pids"}.isdisjoint(names)

    def _refuse(self, controller: str, number: int, path: str) -> None:
        self.errors[controller] = LimitError(controller, self.layout.backend, number, path)

    def _make(self, slot: Slot, bases: dict[Hierarchy, tuple[str, frozenset[str]]]) -> list[Part]:
        paths = {place: f"{base}/{slot.name}" for place, (base, _) in bases.items()}
        self._sweep(dict.fromkeys([*slot.made(), *paths.values()]))
        slot.record(list(paths.values()))
        parts = []
        for place, (base, names) in bases.items():
            if not names:
                continue
            part = Part(place.version, paths[place], names)
            try:
                self._make_directory(part, base)
            except (OSError, LimitError) as error:
                for one in names:
                    number = error.errno or errno.EIO
                    if not place.writable:
                        number = errno.EROFS
                    self.errors[one] = LimitError(one, place.backend, number, part.directory)
                continue
            enabled = self._enable(part)
            if enabled:
                parts.append(part._replace(controllers=enabled))
        return parts

    def _sweep(self, paths: Iterable[str]) -> None:
        """Remove what a killed session of this slot left, wherever it was."""
        there = [path for path in paths if os.path.isdir(path)]
        for path in there:
            self._lock(path)
        left = remove_trees(there, time.monotonic() + PATIENCE)
        self._unlock()
        if left:
            raise _Taken

    def _make_directory(self, part: Part, base: str) -> None:
        try:
            cgroup_layout.make(part.directory)
        except FileExistsError:
            raise _Taken from None
        self._lock(part.directory)
        if "cpuset" in part.controllers:
            for one in part.backend.prepare(part.directory, base):
                part.set(one)

    def _lock(self, directory: str) -> None:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _Taken from None
        self._locks.append(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Taken from None

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _enable(self, part: Part) -> frozenset[str]:
        """Enable the controllers for the groups below; return those for which that worked."""
        if part.version == 1:
            return part.controllers
        found = part.controllers & cgroup_layout.CORE_OF_V2
        path = part.directory + "/cgroup.subtree_control"
        assert self._claim is not None
        for one in sorted(part.controllers - found):
            try:
                self._claim.hand_on(part.directory, one)
            except OSError as error:
                self.errors[one] = LimitError(one, "v2", error.errno or errno.EIO, path)
            else:
                found |= {one}
        return found

    def descriptors(self) -> frozenset[int]:
        """Return the descriptors that hold the session's directories and its slot."""
        slot = [self.slot.lock] if self.slot is not None else []
        return frozenset(self._locks + slot)

    # groups

    def plan(self, limits: Limits) -> Plan:
        """Plan groups with *limits*; call it before the tests run, as it works a plan out once.

        Raises:
            LimitError: they can't be held here.
        """
        found = self._plans.get(id(limits))
        if found is None:
            for controller in sorted(limits.controllers()):
                if controller in self.errors:
                    raise self.errors[controller]
                if not any(controller in part.controllers for part in self.parts):
                    raise LimitError(controller, self.layout.backend, errno.EOPNOTSUPP)
            found = self._plans[id(limits)] = plan(self.parts, limits, self._welcome)
        return found

    def group(self, limits: Limits) -> Group:
        """Make a new group with *limits*, accounting included.

        Raises:
            LimitError: a limit can't be held here, or was refused.
        """
        if self._lingering:
            self.reap()
        self._numbers += 1
        return Group(self.plan(limits), f"{GROUP_PREFIX}{self._numbers}")

    def end(self, group: Group) -> None:
        """Remove *group*, whose processes have been killed, as soon as they are gone."""
        group.close()
        self._lingering.append((time.monotonic(), group))

    def reap(self) -> None:
        """Remove groups that have been ended, if their processes have had the time to go."""
        now = time.monotonic()
        left = []
        for since, group in self._lingering:
            age = now - since
            # Earlier it is busy, and each try costs as much as the one that succeeds.
            if age < _BUSY or not (group.remove() if age > _LINGERS else group.try_remove()):
                left.append((since, group))
        self._lingering = left

    # the end

    def handover(self) -> Handover | None:
        """Return what another process needs to remove the cgroups; None if there are none."""
        if self.slot is None:
            return None
        claim = self._claim
        return Handover(
            slot=(self.slot.directory, self.slot.number, self.slot.lock),
            locks=tuple(self._locks),
            directories=tuple(part.directory for part in self.parts),
            claim=None if claim is None else (claim.base, claim.leaf, tuple(claim.enabled)),
        )

    def spare(self, directories: Iterable[str]) -> None:
        """Let `close` leave the locks and these groups to another process that holds them too."""
        self._spared = frozenset(directories)

    def close(self) -> list[str]:
        """Remove everything; return the directories that could not be removed in `PATIENCE`."""
        deadline = time.monotonic() + PATIENCE
        for _, group in self._lingering:
            group.remove(max(0.0, deadline - time.monotonic()))
        self._lingering = []
        if self._spared:
            return self._leave(deadline)
        left = remove_trees([part.directory for part in self.parts], deadline)
        self._unlock()
        if self._claim is not None:
            self._claim.give_back()
        if self.slot is not None:
            self.slot.release(clean=not left)
            self.slot = None
        self.parts = []
        return left

    def _leave(self, deadline: float) -> list[str]:
        there = [path for part in self.parts for path in cgroup_layout.children(part.directory)]
        left = remove_trees([path for path in there if path not in self._spared], deadline)
        self._unlock()
        if self.slot is not None:
            self.slot.release(clean=False)
            self.slot = None
        self.parts = []
        return left


def _version(directory: str) -> int:
    return 2 if os.path.exists(directory + "/cgroup.events") else 1


def _kill(directory: str, deadline: float) -> None:
    freezer = directory if os.path.exists(directory + "/freezer.state") else None
    with contextlib.suppress(OSError):
        BACKENDS[_version(directory)].kill(directory, freezer, deadline)


def remove_trees(directories: Iterable[str], deadline: float) -> list[str]:
    """Kill what is in these cgroups and below, frozen or not, and remove them.

    Args:
        deadline: monotonic, for all of it.

    Returns:
        those that could not be removed.
    """
    # In v1 what is frozen dies when its freezer lets it go, and that is a directory of its own.
    ordered = sorted(directories, key=lambda path: not os.path.exists(path + "/freezer.state"))
    return [path for path in ordered if not _remove_tree(path, deadline)]


def _remove_tree(directory: str, deadline: float) -> bool:
    for path in cgroup_layout.children(directory):
        _remove_tree(path, deadline)
    if cgroup_layout.remove(directory, 0):
        return True
    _kill(directory, deadline)
    return cgroup_layout.remove(directory, deadline)


def sweep(*, layout: Layout | None = None, runtime: str | None = None) -> list[str]:
    """Remove what killed sessions of this user left; return the directories removed."""
    return sweep_all(layout=layout, runtime=runtime)[0]


def sweep_all(
    *, layout: Layout | None = None, runtime: str | None = None
) -> tuple[list[str], list[str]]:
    """Do as `sweep`; return the directories removed, and those that could not be."""
    removed: list[str] = []
    lasting: list[str] = []
    bases = {one.own for one in (layout or cgroup_layout.find()).hierarchies}
    bases |= {os.path.dirname(base) for base in bases if base.endswith("/" + delegation.LEAF)}
    for slot in locks.abandoned(runtime):
        paths = dict.fromkeys([*slot.made(), *(f"{base}/{slot.name}" for base in sorted(bases))])
        standing = [path for path in paths if os.path.isdir(path)]
        there = [path for path in standing if not _lives(path)]
        left = remove_trees(there, time.monotonic() + PATIENCE)
        removed += [path for path in there if path not in left]
        lasting += left
        # What somebody holds still has to be found later.
        slot.release(clean=not left and len(there) == len(standing))
    return removed, lasting


def _lives(directory: str) -> bool:
    """Return whether a session holds the flock of its directory."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
