"""What other plugins need to be told about tests that run elsewhere.

Everything here goes by what is installed and loaded; nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_USAGE_ERROR = "nsisolate_usage_error"
_LAST_LINES = "nsisolate_last_lines"
#: Lines that are printed at the end of the session.
last_lines_key: pytest.StashKey[list[str]] = pytest.StashKey()
_RERUN_STATE = ("_test_failed_statuses", "_terminal_errors", "_test_xfailed")


def descriptors() -> frozenset[int]:
    """The descriptors open in this process; none where the system can't say."""
    if sys.platform != "linux":
        return frozenset()
    return frozenset(map(int, os.listdir("/proc/self/fd")))


#: Open when the plugin was loaded: inherited from whatever started pytest, or
#: opened by an outer layer (xdist's channel). What came later and is not the
#: plugins', the code under test has opened while it was imported.
AT_START = descriptors()


def open_files(config: pytest.Config) -> set[int]:
    """Descriptors of the runner that a test process has as well."""
    kept = set(descriptors() - AT_START)
    logging: Any = config.pluginmanager.getplugin("logging-plugin")
    stream: Any = getattr(getattr(logging, "log_file_handler", None), "stream", None)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        kept.add(stream.fileno())
    return kept


def keep_files_real() -> None:
    """Spare this plugin what pyfakefs does to all modules while a test has its fixture."""
    module: Any = sys.modules.get("pyfakefs.fake_filesystem_unittest")
    spared = getattr(getattr(module, "Patcher", None), "SKIPMODULES", None)
    if isinstance(spared, set):
        own = __name__.partition(".")[0]
        spared.update(one for name, one in sys.modules.items() if name.partition(".")[0] == own)


def show_unraisable(config: pytest.Config) -> None:
    """Have pytest warn of, or fail for, the errors of garbage that was collected just now.

    From 8.4 on, it keeps them and looks at them in a ``pytest_runtest_teardown`` that runs before
    any other plugin's last one.
    """
    unraisable: Any = sys.modules.get("_pytest.unraisableexception")
    key = getattr(unraisable, "unraisable_exceptions", None)
    if key is not None and key in config.stash:
        unraisable.collect_unraisable(config)


def recall_modules() -> None:
    """Put this package's modules back that were taken out of `sys.modules`.

    pytester does so after each run in its own process. The package still has them as
    attributes, so that ``from . import x`` gives the module of the run before and ``from .x
    import y`` a new one: two classes of one name.
    """
    todo = [sys.modules[__name__.partition(".")[0]]]
    while todo:
        package = todo.pop()
        todo.extend(
            sys.modules.setdefault(value.__name__, value)
            for value in list(vars(package).values())
            if isinstance(value, ModuleType) and value.__name__.startswith(f"{package.__name__}.")
        )


def _subtests(item: pytest.Item) -> tuple[Any, Any]:
    module: Any = sys.modules.get("_pytest.subtests")  # pytest 9
    counts = item.config.stash.get(module.failed_subtests_key, None) if module else None
    return counts, getattr(item, "id", item.nodeid)


def failed_subtests(item: pytest.Item) -> int:
    """How many subtests (pytest's fixture) failed in this process; makes the test itself fail."""
    counts, key = _subtests(item)
    return counts[key] if counts is not None and key in counts else 0


def count_failed_subtests(item: pytest.Item, count: int) -> None:
    """Note in the runner what `failed_subtests` gave in the test process."""
    counts, key = _subtests(item)
    if counts is not None:
        counts[key] = int(count)


def restore_subtest(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """A subtest's parameters were made text once; building its context does so again."""
    context: Any = getattr(report, "context", None)
    given = data.get("_subtest.context")
    if context is not None and given is not None and hasattr(context, "kwargs"):
        object.__setattr__(context, "kwargs", given["kwargs"])


def reruns_handles(item: pytest.Item) -> bool:
    """Whether pytest-rerunfailures will run the protocol of *item*."""
    module: Any = sys.modules.get("pytest_rerunfailures")
    if module is None or not item.config.pluginmanager.has_plugin("rerunfailures"):
        return False
    excluded = getattr(module, "_is_rerun_path_excluded", None)
    if excluded is not None and excluded(item):
        return False
    return module.get_reruns_count(item) is not None


def adopt_reruns(protocol: Callable[..., list[pytest.TestReport]]) -> None:
    """Let pytest-rerunfailures run each attempt by *protocol*.

    It implements ``pytest_runtest_protocol`` itself, around the `runtestprotocol`
    it imported from pytest; there is no hook in between.
    """
    module: Any = sys.modules.get("pytest_rerunfailures")
    if module is not None and hasattr(module, "runtestprotocol"):
        module.runtestprotocol = protocol


def reruns_state(item: pytest.Item) -> dict[str, Any]:
    """What pytest-rerunfailures noted on the item, in the test process."""
    return {
        name: getattr(item, name)
        for name in _RERUN_STATE
        if isinstance(getattr(item, name, 0), dict)
    }


def restore_reruns_state(item: pytest.Item, state: dict[str, Any]) -> None:
    """Put on the runner's item what `reruns_state` gave."""
    for name in _RERUN_STATE:
        if name in state or name == _RERUN_STATE[0]:
            setattr(item, name, state.get(name, {}))
    for name in ("_rerun_condition_excinfos", "_rerun_condition_results"):
        setattr(item, name, {})


def retention_policy(config: pytest.Config) -> str:
    """Whose ``tmp_path`` is kept: of "failed" tests, of "all", or of "none".

    Pytest keeps all by default; to copy each out of its sandbox has to be asked for.
    """
    name = "tmp_path_retention_policy"
    # pytest 9 made it private, and puts there what -o says, too.
    given: Any = getattr(config, "_inicfg", None)
    if given is None:
        given = getattr(config, "inicfg", {})
    overridden = config.getoption("override_ini", default=None) or ()
    if name not in given and not any(one.startswith(f"{name}=") for one in overridden):
        return "failed"
    return str(config.getini(name))


def number_tmp_path(config: pytest.Config, stem: str, number: int) -> None:
    """Have the next ``tmp_path`` of that name get this number."""
    factory: Any = getattr(config, "_tmp_path_factory", None)
    counters = getattr(factory, "_next_number", None)
    if counters is not None:  # since pytest 9.2
        counters[stem.lower()] = number
    elif factory is not None:
        # The number after the last one that is taken: an empty directory takes it.
        with contextlib.suppress(OSError):
            os.mkdir(os.path.join(factory.getbasetemp(), f"{stem}{number - 1}"), 0o700)


def refuse_rivals(config: pytest.Config) -> None:
    """pytest-isolated owns the same marker name: one of the two can be active.

    Raises:
        pytest.UsageError: both are.
    """
    for name, plugin in config.pluginmanager.list_name_plugin():
        if getattr(plugin, "__name__", "").partition(".")[0] == "pytest_isolated":
            raise pytest.UsageError(
                "the plugins pytest-nsisolate and pytest-isolated both own the marker "
                "'isolated', so they can't both be active; choose one: "
                f"-p no:{name} leaves out pytest-isolated, -p no:nsisolate leaves out this one"
            )


def tell_controller(config: pytest.Config, text: str) -> None:
    """In a worker of pytest-xdist: leave a usage error to the controller to show."""
    output: Any = getattr(config, "workeroutput", None)
    if output is not None:
        output[_USAGE_ERROR] = text


def raise_told(node: Any) -> None:
    """In the controller: raise what the worker *node* left.

    Raises:
        pytest.UsageError: it did.
    """
    text = getattr(node, "workeroutput", {}).get(_USAGE_ERROR)
    if text is not None:
        raise pytest.UsageError(text)


def tell_at_end(config: pytest.Config, lines: list[str]) -> None:
    """Have *lines* printed at the end of the session, by the controller if this is a worker."""
    output: Any = getattr(config, "workeroutput", None)
    if output is not None:
        output[_LAST_LINES] = lines
    else:
        config.stash.setdefault(last_lines_key, []).extend(lines)


def take_last_lines(node: Any) -> None:
    """In the controller: what the worker *node* left by `tell_at_end`."""
    lines = getattr(node, "workeroutput", {}).get(_LAST_LINES)
    if lines:
        tell_at_end(node.config, list(map(str, lines)))


def wants_isolation(items: list[pytest.Item], *, isolate: bool) -> bool:
    """Whether any of *items* may have to be isolated: a cheap look before anything is imported."""
    for item in items:
        marks = list(item.iter_markers("isolated"))
        # An opt-out with keys is bad input, which is for others to tell.
        if any(mark.args != (False,) or mark.kwargs for mark in marks) or (isolate and not marks):
            return True
    return False


def write_line(config: pytest.Config, line: str) -> None:
    """A line on the terminal, if there is one."""
    terminal: Any = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        terminal.write_line(line)


def disarm_timers(item: pytest.Item) -> None:
    """In the test process: no time of another plugin runs any more in this test."""
    disarm_faulthandler()
    cancel: Any = getattr(item.config.hook, "pytest_timeout_cancel_timer", None)
    if cancel is not None:
        cancel(item=item)


def disarm_faulthandler() -> None:
    """``faulthandler_timeout`` is armed around the runner's wait as well as inside."""
    faulthandler: Any = sys.modules.get("faulthandler")
    if faulthandler is not None:
        faulthandler.cancel_dump_traceback_later()
