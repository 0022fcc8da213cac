"""Use private names of pytest and of other plugins in the template and the test process.

Where pytest or a plugin has removed a name, the function does nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pytest


def leave_only(hook: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove all implementations of a hook but the *wanted* ones.

    ``_hookimpls`` is pluggy's own list. The callers for a directory that pytest caches
    on nodes read the same list. Unregistering the plugins instead would remove all their
    other hooks too.
    """
    hook._hookimpls[:] = [one for one in hook.get_hookimpls() if wanted(one)]


@contextlib.contextmanager
def only(hooks: Iterable[Any], wanted: Callable[[Any], bool]) -> Iterator[None]:
    """Call `leave_only` for each of *hooks*, and restore all implementations at the end."""
    before = [(hook, list(hook.get_hookimpls())) for hook in hooks]
    try:
        for hook, _ in before:
            leave_only(hook, wanted)
        yield
    finally:
        for hook, implementations in before:
            hook._hookimpls[:] = implementations


def open_files(config: pytest.Config, at_start: frozenset[int]) -> set[int]:
    """List the runner's descriptors that a test process needs too.

    Args:
        at_start: descriptors that were open when pytest loaded this plugin.
    """
    kept = set(open_descriptors() - at_start)
    logging: Any = config.pluginmanager.getplugin("logging-plugin")
    stream: Any = getattr(getattr(logging, "log_file_handler", None), "stream", None)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        kept.add(stream.fileno())
    return kept


def keep_files_real() -> None:
    """Stop pyfakefs from patching the modules of this package during a test with its fixture."""
    module: Any = sys.modules.get("pyfakefs.fake_filesystem_unittest")
    spared = getattr(getattr(module, "Patcher", None), "SKIPMODULES", None)
    if isinstance(spared, set):
        own = __name__.partition(".")[0]
        spared.update(one for name, one in sys.modules.items() if name.partition(".")[0] == own)


def show_unraisable(config: pytest.Config) -> None:
    """Let pytest report the errors of the garbage that was collected just now.

    Since version 8.4 pytest stores these errors and reports them in a
    ``pytest_runtest_teardown`` that runs before the last one of any other plugin.
    """
    unraisable: Any = sys.modules.get("_pytest.unraisableexception")
    key = getattr(unraisable, "unraisable_exceptions", None)
    if key is not None and key in config.stash:
        unraisable.collect_unraisable(config)


def number_tmp_path(config: pytest.Config, stem: str, number: int) -> None:
    """Make pytest give this number to the next ``tmp_path`` named *stem*."""
    factory: Any = getattr(config, "_tmp_path_factory", None)
    counters = getattr(factory, "_next_number", None)
    if counters is not None:  # since pytest 9.2
        counters[stem.lower()] = number
    elif factory is not None:
        # pytest takes the number after the highest that exists.
        with contextlib.suppress(OSError):
            os.mkdir(os.path.join(factory.getbasetemp(), f"{stem}{number - 1}"), 0o700)


def disarm_timers(item: pytest.Item) -> None:
    """Stop the timers of other plugins for the rest of this test."""
    faulthandler.cancel_dump_traceback_later()
    cancel: Any = getattr(item.config.hook, "pytest_timeout_cancel_timer", None)
    if cancel is not None:
        cancel(item=item)
