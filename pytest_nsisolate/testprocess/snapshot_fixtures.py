"""Inside a snapshot: set the fixtures of a group up once, find what a fork can't copy, tear down.

A snapshot is a test process that runs no test. It sets up the fixtures of its scope and
wider that the tests of its group ask for, each by the request of the first item that
does, and from then on it is the template of these tests. Their forks find the fixtures
in pytest's own caches, failed ones as well. At the end it tears down what it set up.

What lives in the kernel rather than in memory is no copy in a fork: it is found after
each fixture, which is then torn down again and fails for whoever asks for it. Files are
opened anew in each fork, at the place where they were.

Relies on names of pytest that are not public: `SetupState`, `FixtureDef.cached_result`
and `FixtureRequest._get_active_fixturedef`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_nsisolate.core.proc import children, command_line

from .pytest_private import only

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from pytest_nsisolate.spec.spec import Spec

#: Scopes, the widest first.
RANKS = {"session": 0, "package": 1, "module": 2, "class": 3, "function": 4}
_OWN = "_pytest."
_CHUNK = 1 << 20
#: Of open(2): what was done once, and is not to be done again.
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


def _run_hook(hook: Any, do: Callable[[], None], **arguments: object) -> None:
    """Call *do* as the one implementation of *hook*, inside of pytest's own wrappers.

    So its output and its logging are captured for the item.
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
    """Set up the fixtures; what fails is kept by pytest, for each test to report.

    Args:
        keep: descriptors of this plugin.
    """
    first = setting.items[0]
    config = first.config
    watch = _Watch(setting, keep)
    manager = config.pluginmanager
    manager.register(watch, "nsisolate-snapshot")
    try:
        with _recorded_warnings(first):
            hook = config.hook.pytest_runtest_setup
            _run_hook(hook, lambda: _set_up(setting), item=first)
    finally:
        manager.unregister(watch)


def _set_up(setting: Setting) -> None:
    state = setting.node.session._setupstate
    try:
        # It takes collectors as well.
        state.setup(setting.node)  # type: ignore[arg-type]
    except BaseException:  # noqa: BLE001 -- kept there, and raised in each test
        return
    for item in setting.items:
        if getattr(item, "_request", None) is not None:
            # To pytest a request is one of a test that is being set up.
            state.stack[item] = ([], None)
            try:
                _ask(item, setting.rank)
            finally:
                del state.stack[item]


def _ask(item: Any, rank: int) -> None:
    if pytest.version_tuple < (8, 2) and hasattr(item, "_testcase"):
        # There a fixture of a unittest class is called on the instance that a test's setup makes.
        item._testcase = item.parent.obj(item.name)
    for name in item.fixturenames:
        if _is_wide(item, name, rank):
            try:
                item._request._get_active_fixturedef(name)
            except BaseException:  # noqa: BLE001 -- kept by pytest as the fixture's result
                break  # as in a test, whose later fixtures aren't set up then
    if hasattr(item, "_initrequest"):
        item._initrequest()  # the test begins anew, and finds them


def _is_wide(item: Any, name: str, rank: int) -> bool:
    """Whether the fixture that *item* knows by *name* belongs to the snapshot."""
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
    """As pytest does around a test."""
    from _pytest.warnings import catch_warnings_for_item  # noqa: PLC0415 -- loaded by pytest

    if not item.config.pluginmanager.has_plugin("warnings"):
        yield
        return
    with catch_warnings_for_item(config=item.config, ihook=item.ihook, when="runtest", item=item):
        yield


def keep(node: pytest.Collector) -> None:
    """In a test: whatever pytest tears down, what the snapshot holds for *node* stays.

    It passes no next item also when the session is about to stop.
    """
    state: Any = node.session._setupstate
    tear_down_to = state.teardown_exact
    state.teardown_exact = lambda nextitem: tear_down_to(nextitem or node)


def tear_down(
    setting: Setting, item: pytest.Item, outer: pytest.Collector | None
) -> pytest.TestReport:
    """Run the finalisers; the report of it, as a teardown of *item*.

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


# what a fork can't copy


class _Held(NamedTuple):
    """What this process has of the kernel's, apart from regular files."""

    threads: dict[int, str]
    descriptors: dict[int, str]
    processes: frozenset[int]
    mappings: frozenset[str]


def _held(keep: set[int]) -> _Held:
    threads = {
        one.native_id: one.name
        for one in threading.enumerate()
        if one.native_id is not None and one is not threading.main_thread()
    }
    for name in os.listdir("/proc/self/task"):
        if int(name) != os.getpid():
            threads.setdefault(int(name), "(not Python's)")
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fd = int(name)
            if fd not in keep and not stat.S_ISREG(os.fstat(fd).st_mode):
                descriptors[fd] = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        lines = [line.split(None, 5) for line in stream]
    # A shared mapping of a file may be there for reading; one that can be written is the point.
    mappings = frozenset(
        (line[5].strip() if len(line) > 5 else "memory") + " at " + line[0]
        for line in lines
        if line[1].startswith("rw") and line[1].endswith("s")
    )
    return _Held(threads, descriptors, frozenset(children(os.getpid())), mappings)


def _said_of(before: _Held, after: _Held, *, shares_net: bool) -> list[str]:
    """What came between the two, a line each, with the reason why no fork can have it."""
    lines = []
    if not shares_net:
        lines += [
            f"the thread {name!r}: a fork has only the thread that forks"
            for thread, name in after.threads.items()
            if thread not in before.threads
        ]
        lines += [
            f"the process {pid} ({command_line(pid)}): it stays in the snapshot's sandbox"
            for pid in after.processes - before.processes
        ]
    for fd, link in after.descriptors.items():
        if before.descriptors.get(fd) == link:
            continue
        if link == "anon_inode:[eventpoll]":
            lines.append(
                "an event loop (epoll): all forks would wait on the same one; async fixtures "
                "need a loop of each test's own, such as loop_scope='function'"
            )
        elif link.startswith("socket:") and not shares_net:
            lines.append(f"the socket {_address(fd)}: it stays in the snapshot's network")
        elif link.startswith("pipe:") and not shares_net:
            lines.append(f"the pipe {fd}: all forks would read and write the same one")
        elif link.startswith(("anon_inode:", "/dev/pt")):
            lines.append(f"the descriptor {fd} ({link}): all forks would share it")
    return lines + [
        f"the shared mapping of {mapping}: all forks would write to the same memory"
        for mapping in sorted(after.mappings - before.mappings)
    ]


def _address(fd: int) -> str:
    try:
        with socket.socket(fileno=os.dup(fd)) as one:
            name = f"{fd}" if one.family == socket.AF_UNIX and not one.getsockname() else ""
            return name or f"{one.getsockname()!r}"
    except OSError:
        return f"{fd}"


class _Watch:
    """Looks after each fixture what it left."""

    def __init__(self, setting: Setting, keep: set[int]) -> None:
        self._keep = keep
        self._shares_net = "net" in setting.spec.share
        self._scope = setting.spec.snapshot

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: Any
    ) -> Generator[None, object, object]:
        try:
            before = _held(self._keep)
            result = yield
        except BaseException as failure:
            if fixturedef.cached_result is None:
                # It failed in another plugin's part, or here; pytest would set it up once more.
                key = fixturedef.cache_key(request)
                fixturedef.cached_result = _failed(key, failure, failure.__traceback__)
            raise
        try:
            lines = _said_of(before, _held(self._keep), shares_net=self._shares_net)
        except OSError as trouble:
            lines = [f"what nobody could look for: {trouble}"]
        if not lines:
            return result
        error = pytest.fail.Exception(self._text(fixturedef, lines), pytrace=False)
        key = fixturedef.cache_key(request)
        # What it set up must not be in the forks of tests that do without it.
        with contextlib.suppress(BaseException):
            fixturedef.finish(request)
        fixturedef.cached_result = _failed(key, error, None)
        raise error

    def _text(self, fixturedef: pytest.FixtureDef[Any], lines: list[str]) -> str:
        code: Any = getattr(fixturedef.func, "__code__", None)
        where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
        what = "\n".join(f"  {line}" for line in lines)
        return (
            f"NO SNAPSHOT of the fixture {fixturedef.argname!r}{where}: it left what a fork has no "
            f"copy of:\n{what}\n"
            f"With snapshot={self._scope!r} each test is a fork of the process that set this "
            "fixture up. Give the fixture a narrower scope, so that each test sets it up; or "
            "leave the tests that use it without a snapshot; or, for a server, add "
            "share=('net',): it then stays with the snapshot, whose network its tests share."
        )


def _failed(key: object, error: BaseException, trace: TracebackType | None) -> Any:
    """The result of a fixture that failed, in pytest's own form."""
    return (None, key, (error, trace) if pytest.version_tuple >= (8, 2) else error)


# files


class OpenFile(NamedTuple):
    """A regular file that a fixture left open."""

    fd: int
    path: str
    flags: int
    removed: bool


def open_files(keep: set[int]) -> list[OpenFile]:
    """The regular files that are open here, except for those in *keep*."""
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
    """In a test process, in its sandbox: open each of the files anew at its number and place."""
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
    """A file without a name that holds what *fd* does."""
    copy = os.memfd_create("nsisolate", os.MFD_CLOEXEC)
    place = 0
    while data := os.pread(fd, _CHUNK, place):
        os.pwrite(copy, data, place)
        place += len(data)
    return copy


def flush() -> None:
    """What is buffered in this process's standard streams would be written by each fork."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
