"""Make the plans of a session: one for each kind of sandbox that tests and snapshots need."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.core.bare_process import PACKAGE
from pytest_nsisolate.core.linux.syscalls import getcwd
from pytest_nsisolate.files.needed_paths import (
    directories_to,
    home_of,
    probe_host,
    temporary_of,
    visible,
)
from pytest_nsisolate.reports import coverage as coverage_data
from pytest_nsisolate.sandbox.operations.namespaces import flags_without, identity
from pytest_nsisolate.sandbox.operations.plan import (
    PRIVATE,
    Host,
    Plan,
    View,
    build_operations,
    is_below,
    with_shared,
)
from pytest_nsisolate.spec.keys import Flag, having

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pytest

    from pytest_nsisolate.files.views import Facts
    from pytest_nsisolate.runner.snapshot import Snapshot
    from pytest_nsisolate.sandbox.client import IdMaps
    from pytest_nsisolate.spec.spec import Spec


#: Keys of which another value is another plan. What follows from other keys is added to them.
_PLAN = having(Flag.PLAN)
#: The variables that name directories of the user's own, see `needed_paths`.
_OWN = ("HOME", "TMPDIR", "TEMP", "TMP")


class _Own(NamedTuple):
    """Directories that the environment of a test names, where sandboxes hide the host's.

    Attributes:
        home: the home directory; none where it is not hidden.
        temporary: for temporary files, wherever they are.
    """

    home: tuple[str, ...]
    temporary: tuple[str, ...]


class Plans:
    """The plans of a session. Equal specs have one plan.

    Args:
        maps: the ids that the session's user namespace has.
        basetemp: pytest's directory for ``tmp_path``.

    Attributes:
        all: by number.
        outer: the numbers of those that the keeper builds; the others are built in a snapshot's.
    """

    def __init__(self, config: pytest.Config, maps: IdMaps, basetemp: str | None) -> None:
        self._maps = maps
        self._basetemp = basetemp
        self._everything = paths_needed(config)
        self._needed = visible(self._everything)
        self._views = _Views(config, self._everything, basetemp, maps)
        self._host = probe_host(self._needed)
        self._way = always_on.way()
        self._own: dict[tuple[str | None, ...], _Own] = {}
        self._known: dict[object, int] = {}
        self.all: list[Plan] = []
        self.outer: list[int] = []

    def number(
        self, spec: Spec, *, hosts: str | None = None, level: int = 0, snapshot: bool = False
    ) -> int:
        """Return the number of the plan for *spec*, and make the plan if it is new.

        Args:
            hosts: the file that becomes /etc/hosts, None for the usual one.
            level: how many snapshots' sandboxes it is inside of.
            snapshot: whether it is for a snapshot. What is in ``share`` is then shared with
                the one that it is inside of; the outermost has its own.
        """
        share = spec.shared
        if snapshot and level == 0:
            share = ("net",) if spec.net == "host" else ()
        hostname = spec.hostname if "uts" not in share else ""
        own, pid_max = self._own_of(spec), self._pid_max(spec, snapshot=snapshot)
        kind = (
            *spec.values(_PLAN),
            *(share, hostname, hosts, level, snapshot, spec.linked, own, pid_max),
        )
        if kind not in self._known:
            self._known[kind] = len(self.all)
            if level == 0:
                self.outer.append(len(self.all))
            self.all.append(self._make(spec, own, share, hosts, level=level, snapshot=snapshot))
        return self._known[kind]

    def _pid_max(self, spec: Spec, *, snapshot: bool) -> int:
        private = self._way is always_on.Way.PID_MAX
        return always_on.pid_max(spec.pids, snapshot=snapshot) if private else 0

    def _own_of(self, spec: Spec) -> _Own:
        """Find the directories that the environment of the test names."""
        inherits = spec.env == "inherit"
        environment = os.environ if inherits else spec.environment(os.environ)
        key = tuple(environment.get(name) for name in _OWN)
        if key not in self._own:
            self._own[key] = _Own(tuple(home_of(environment)), tuple(temporary_of(environment)))
        return self._own[key]

    def _make(
        self,
        spec: Spec,
        own: _Own,
        share: tuple[str, ...],
        hosts: str | None,
        *,
        level: int,
        snapshot: bool,
    ) -> Plan:
        uids, gids = self._maps.for_user(spec.user)
        if level:
            uids, gids = identity(uids), identity(gids)
        # One that is hidden itself is there, and empty.
        home = [path for path in own.home if not _is_hidden(os.path.dirname(path), spec)]
        temporary = list(own.temporary)
        if spec.rootfs is not None:  # another system has no home of the host's
            home, temporary = [], [*temporary, *home]
        needed = self._needed
        if spec.writable or home:
            needed = visible([*self._everything, *spec.writable, *home])
        places = self._temporary(spec, temporary, home)
        pid_max = self._pid_max(spec, snapshot=snapshot)
        view, devices = self._views.of(spec, pid_max, needed, places)
        named = (*spec.writable, *spec.hide, *([spec.rootfs] if spec.rootfs is not None else []))
        shown = [os.path.realpath(path) for path in named]
        host = self._host if needed is self._needed else probe_host(needed)
        name = (hosts or f"hosts-{spec.hostname}") if "uts" not in share else None
        host, view = with_shared([*needed, *shown], _host(host, spec), view, name)
        operations = build_operations(
            share=share,
            hosts=hosts,
            hostname=spec.hostname,
            tmpfs=spec.tmpfs,
            groups=gids[0],
            host=host,
            needed=needed,
            basetemp=self._basetemp,
            temporary=places,
            devices=devices,
            view=view,
            offset=spec.clock,
            level=level,
            snapshot=snapshot,
            alone=not spec.linked,
            pid_max=pid_max,
        )
        flags = flags_without(share, clock=spec.clock is not None)
        return Plan(flags, tuple(uids), tuple(gids), operations, view.ground)

    def _temporary(
        self, spec: Spec, temporary: list[str], home: list[str]
    ) -> tuple[tuple[str, bool], ...]:
        """Return the directories for temporary files, and whether each needs a writable mount."""
        found = []
        for path in temporary:
            closed = spec.fs == "readonly" or spec.rootfs is not None or _is_hidden(path, spec)
            kept = [*self._everything, *spec.writable, *home]
            found.append((path, closed and not any(is_below(one, path) for one in kept)))
        return tuple(found)

    def settle(self, snapshots: Iterable[Snapshot]) -> None:
        """Give each of the snapshots its own plan and the plan of its tests."""
        for one in snapshots:
            plan = self.number(one.spec, level=one.level, snapshot=True)
            one.build_by(plan, self.number(one.spec, level=one.level + 1))


def _is_hidden(path: str, spec: Spec) -> bool:
    """Return whether a path is hidden by the spec, or lies in a hidden directory."""
    tops = [os.path.realpath(one) for one in spec.hide]
    return any(is_below(os.path.realpath(path), top) for top in tops)


def _host(host: Host, spec: Spec) -> Host:
    return host if spec.rootfs is None else host.with_root()


def paths_needed(config: pytest.Config) -> list[str]:
    """List the paths that tests need to see, wherever they are."""
    paths = [
        str(config.rootpath),
        str(config.invocation_params.dir),
        getcwd(),
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        *directories_to(sys.executable),
        PACKAGE,
        *sys.path,
    ]
    cache: Any = getattr(config, "cache", None)
    if cache is not None:
        paths.append(str(cache._cachedir.parent))
    current = coverage_data.current()
    if current is not None:
        paths.append(os.path.dirname(os.path.abspath(current.get_option("run:data_file"))))
    # Editable installs and conftest files may lie off sys.path.
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(PRIVATE):
            paths.append(os.path.dirname(file))
    return [path for path in paths if path]


class _Views:
    """The views of a session's sandboxes. The facts of the host are read for the first one."""

    def __init__(
        self, config: pytest.Config, needed: list[str], basetemp: str | None, maps: IdMaps
    ) -> None:
        self._apart = [
            str(config.rootpath),
            str(config.invocation_params.dir),
            getcwd(),
            os.path.expanduser("~"),
        ]
        self._needed = needed
        self._basetemp = basetemp
        self._maps = maps
        self._facts: Facts | None = None

    def of(
        self,
        spec: Spec,
        pid_max: int,
        shown: list[str],
        temporary: tuple[tuple[str, bool], ...],
    ) -> tuple[View, tuple[str, ...] | None]:
        """Return the view that *spec* asks for, and the nodes of its /dev.

        Args:
            pid_max, temporary: see `plan.build_operations`.
            shown: what is visible in the private directories.
        """
        if not spec.sealed and not spec.hide:
            return View(propagation=spec.propagation), spec.devices
        # Needed only where a test asks for another view.
        from pytest_nsisolate.files import rootfs, views  # noqa: PLC0415

        if self._facts is None:
            self._facts = views.Facts.read(
                self._needed,
                self._apart,
                self._basetemp,
                all_ids=self._maps.uid == 0 and self._maps.wide,
            )
        mounted = [path for path, alone in temporary if alone]
        wish = views.Wish.of(spec, shown, mounted, pid_max)
        assert wish is not None
        devices = spec.devices
        if spec.rootfs is not None and devices is None:
            devices = rootfs.DEVICES
        return views.make(wish, self._facts), devices


def describe_plans(plans: list[Plan], tests: dict[int, int], names: Sequence[str]) -> list[str]:
    """Describe the plans, one line per step.

    Args:
        tests: the number of each isolated test's plan, by index of the item.
        names: of all items.
    """
    lines = []
    for number, plan in enumerate(plans):
        found = [names[item] for item, one in tests.items() if one == number]
        whom = f"for {len(found)} tests ({found[0]} ...):" if found else "for snapshots:"
        lines.append(f"sandbox plan {number + 1}, {whom}")
        lines += [f"  {step:2}. {line}" for step, line in enumerate(plan.describe(), 1)]
    return lines


def describe_part(
    title: str, describe: Callable[[int], list[str]], items: Iterable[int], names: Sequence[str]
) -> list[str]:
    """Describe what a part of the session does, one line per step, with equal tests together.

    Args:
        describe: gives the steps for the test with an index.
        items: the isolated tests.
        names: of all items.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for item in items:
        groups.setdefault(tuple(describe(item)), []).append(names[item])
    lines = []
    for steps, tests in groups.items():
        if steps:
            lines.append(f"{title}, for {len(tests)} tests ({tests[0]} ...):")
            lines += [f"  {step:2}. {line}" for step, line in enumerate(steps, 1)]
    return lines
