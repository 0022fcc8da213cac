"""Set the fixtures of a snapshot up once, open their files in each fork, tear them down.

A snapshot is a test process that runs no test. It sets up the fixtures of its scope and
wider that the tests of its group ask for, each by the request of the first item that
does. From then on it is the template of these tests. Their forks find the fixtures in
pytest's own caches, failed ones too. At the end the snapshot tears down what it set up.

What lives in the kernel rather than in memory is no copy in a fork. `fork_check` finds it
after each fixture, which is then torn down again and fails for the tests that ask for it.
Each fork opens the files of fixtures again, at the position where they were.

Relies on private names of pytest: `SetupState`, `FixtureDef.cached_result` and
`FixtureRequest._get_active_fixturedef`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_nsisolate.core.linux.descriptors import is_open, open_descriptors

from .fork_check import FixtureCheck
from .pytest_private import only

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_nsisolate.spec.spec import Spec

#: Scopes, the widest first.
RANKS = {"session": 0, "package": 1, "module": 2, "class": 3, "function": 4}
_OWN = "_pytest."
_CHUNK = 1 << 20
#: Flags of open(2) that must not take effect again.
_ONCE = os.O_CREAT | os.O_EXCL | os.O_TRUNC


class Setting(NamedTuple):
    """What a snapshot sets up.

    Attributes:
        node: the class, module or session that it is of.
        rank: of the narrowest scope that it holds, in `RANKS`.
        items: the tests that are forks of it.
        spec: what they ask for; its limits and timeout may differ between them.
    """

    node: pytest.Collector
    rank: int
    items: list[pytest.Item]
    spec: Spec


class HeldFixtures:
    """The fixtures that this process holds for tests. The process of a snapshot sets them up.

    Attributes:
        node: what the snapshot is of; None in a process that has no fixtures of a snapshot.
    """

    def __init__(self) -> None:
        self.node: pytest.Collector | None = None
        self._outer: pytest.Collector | None = None
        self._files: list[OpenFile] = []

    def set_up(self, setting: Setting) -> None:
        """Set up, in a snapshot, the fixtures of *setting* beside those of the outer snapshot."""
        keep = {fd for fd in open_descriptors() if is_open(fd)}
        set_up(setting, keep)
        self._outer, self.node = self.node, setting.node
        self._files = open_files(keep - {file.fd for file in self._files})

    def tear_down(self, setting: Setting, item: pytest.Item) -> pytest.TestReport:
        """Undo `set_up`, in a snapshot; return its report, as a teardown of *item*."""
        self.node = self._outer
        return tear_down(setting, item, self._outer)

    def reopen_files(self) -> None:
        """Open each file of the fixtures again, in a fork of the snapshot in its sandbox."""
        if self._files:
            reopen(self._files)

    def keep(self) -> None:
        """Keep the fixtures of the snapshot, in a test, when pytest tears down.

        pytest passes no next item when the session is about to stop.
        """
        node = self.node
        if node is not None:
            state: Any = node.session._setupstate
            tear_down_to = state.teardown_exact
            state.teardown_exact = lambda nextitem: tear_down_to(nextitem or node)


def _run_hook(hook: Any, do: Callable[[], None], **arguments: object) -> None:
    """Call *do* as the only implementation of *hook*, inside pytest's own wrappers.

    So pytest captures its output and its logging for the item.
    """

    class Doing:
        @pytest.hookimpl
        def pytest_runtest_setup(self) -> None:
            do()

        @pytest.hookimpl
        def pytest_runtest_teardown(self) -> None:
            do()

    manager = arguments["item"].config.pluginmanager  # type: ignore[attr-defined]
    doing = Doing()
    with only([hook], _is_wrapper_of_pytest):
        manager.register(doing, "nsisolate-snapshot-doing")
        try:
            hook(**arguments)
        finally:
            manager.unregister(doing)


def _is_wrapper_of_pytest(one: Any) -> bool:
    wraps: bool = one.wrapper or one.hookwrapper
    return wraps and one.function.__module__.startswith(_OWN)


def set_up(setting: Setting, keep: set[int]) -> None:
    """Set up the fixtures. pytest keeps a failure, and each test reports it.

    Args:
        keep: descriptors of this plugin.
    """
    first = setting.items[0]
    config = first.config
    check = FixtureCheck(setting.spec, keep)
    manager = config.pluginmanager
    manager.register(check, "nsisolate-snapshot")
    try:
        with _recorded_warnings(first):
            hook = config.hook.pytest_runtest_setup
            _run_hook(hook, lambda: _set_up(setting), item=first)
    finally:
        manager.unregister(check)


def _set_up(setting: Setting) -> None:
    state = setting.node.session._setupstate
    try:
        # It takes collectors as well.
        state.setup(setting.node)  # type: ignore[arg-type]
    except BaseException:  # noqa: BLE001 -- pytest keeps it and raises it in each test
        return
    for item in setting.items:
        if getattr(item, "_request", None) is not None:
            # pytest takes a request only from a test that is being set up.
            state.stack[item] = ([], None)
            try:
                _ask(item, setting.rank)
            finally:
                del state.stack[item]


def _ask(item: Any, rank: int) -> None:
    if pytest.version_tuple < (8, 2) and hasattr(item, "_testcase"):
        # These call a fixture of a unittest class on the instance that a test's setup makes.
        item._testcase = item.parent.obj(item.name)
    for name in item.fixturenames:
        if _is_wide(item, name, rank):
            try:
                item._request._get_active_fixturedef(name)
            except BaseException:  # noqa: BLE001 -- kept by pytest as the fixture's result
                break  # as in a test, whose later fixtures aren't set up then
    if hasattr(item, "_initrequest"):
        item._initrequest()  # the test starts with a new request, and finds the fixtures


def _is_wide(item: Any, name: str, rank: int) -> bool:
    """Return whether the fixture that *item* knows by *name* belongs to the snapshot."""
    callspec = getattr(item, "callspec", None)
    scope = callspec._arg2scope.get(name) if callspec is not None else None
    if scope is None:
        found = item._request._arg2fixturedefs.get(name) or item._fixtureinfo.name2fixturedefs.get(
            name
        )
        if not found:
            return False
        scope = found[-1]._scope
    return RANKS[scope.value] <= rank


@contextlib.contextmanager
def _recorded_warnings(item: pytest.Item) -> Iterator[None]:
    """Record warnings as pytest does around a test."""
    from _pytest.warnings import catch_warnings_for_item  # noqa: PLC0415 -- loaded by pytest

    if not item.config.pluginmanager.has_plugin("warnings"):
        yield
        return
    with catch_warnings_for_item(config=item.config, ihook=item.ihook, when="runtest", item=item):
        yield


def tear_down(
    setting: Setting, item: pytest.Item, outer: pytest.Collector | None
) -> pytest.TestReport:
    """Run the finalisers; return a report of that, as a teardown of *item*.

    Args:
        outer: what belongs to the snapshot that this one is a fork of.
    """
    state: Any = setting.node.session._setupstate
    hooks = item.config.hook
    # pytest's own plugins expect a setup before.
    _run_hook(hooks.pytest_runtest_setup, lambda: None, item=item)
    item._report_sections.clear()

    def run() -> None:
        with _recorded_warnings(item):
            hook = hooks.pytest_runtest_teardown
            _run_hook(hook, lambda: state.teardown_exact(outer), item=item, nextitem=None)

    call = pytest.CallInfo.from_call(run, when="teardown")
    # Not by the hook, whose other implementations know only tests that run.
    return pytest.TestReport.from_item_and_call(item, call)


# files


class OpenFile(NamedTuple):
    """A regular file that a fixture left open."""

    fd: int
    path: str
    flags: int
    removed: bool


def open_files(keep: set[int]) -> list[OpenFile]:
    """List the open regular files of this process, except for those in *keep*."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fd = int(name)
            status = os.fstat(fd)
            if fd in keep or not stat.S_ISREG(status.st_mode):
                continue
            path = os.readlink(f"/proc/self/fd/{fd}")
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~_ONCE
            found.append(OpenFile(fd, path, flags, status.st_nlink == 0))
    return found


def reopen(files: list[OpenFile]) -> None:
    """Open each file again at its number and position, in a test process in its sandbox."""
    for file in files:
        with contextlib.suppress(OSError):
            place = os.lseek(file.fd, 0, os.SEEK_CUR)
            fd = _copy(file.fd) if file.removed else _again(file)
            os.lseek(fd, place, os.SEEK_SET)
            inheritable = os.get_inheritable(file.fd)
            os.dup2(fd, file.fd, inheritable=inheritable)
            os.close(fd)


def _again(file: OpenFile) -> int:
    try:
        return os.open(file.path, file.flags | os.O_CLOEXEC)
    except OSError:
        return _copy(file.fd)


def _copy(fd: int) -> int:
    """Make a file without a name that has the content of *fd*."""
    copy = os.memfd_create("nsisolate", os.MFD_CLOEXEC)
    place = 0
    while data := os.pread(fd, _CHUNK, place):
        os.pwrite(copy, data, place)
        place += len(data)
    return copy


def flush() -> None:
    """Flush the standard streams of this process: else each fork writes the buffered text again."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
