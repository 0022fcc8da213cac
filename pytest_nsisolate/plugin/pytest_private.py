"""Use private names of pytest and of other plugins in the runner.

Imports none of these plugins: it uses those that pytest has loaded.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.core.linux.descriptors import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable


#: Open when pytest loaded this plugin: inherited from the parent process, or
#: opened by an outer layer (xdist's channel).
AT_START = open_descriptors()


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


def adopt_reruns(protocol: Callable[..., list[pytest.TestReport]]) -> None:
    """Let pytest-rerunfailures run each attempt by *protocol*.

    It implements ``pytest_runtest_protocol`` itself, around the `runtestprotocol`
    it imported from pytest; there is no hook in between.
    """
    module: Any = sys.modules.get("pytest_rerunfailures")
    if module is not None and hasattr(module, "runtestprotocol"):
        module.runtestprotocol = protocol


def retention_policy(config: pytest.Config) -> str:
    """Return whose ``tmp_path`` is kept: of "failed" tests, of "all", or of "none".

    Pytest keeps all by default; here only a setting copies each out of its sandbox.
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


def refuse_rivals(config: pytest.Config) -> None:
    """Refuse pytest-isolated, which owns the same marker name: only one of the two can be active.

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


def wants_isolation(items: list[pytest.Item], *, isolate: bool) -> bool:
    """Return whether any of *items* may be isolated: a cheap look before anything is imported."""
    for item in items:
        marks = list(item.iter_markers("isolated"))
        # An opt-out with keys is bad input, which is for others to tell.
        if any(mark.args != (False,) or mark.kwargs for mark in marks) or (isolate and not marks):
            return True
    return False


def write_line(config: pytest.Config, line: str) -> None:
    """Write a line to the terminal, if there is one."""
    terminal: Any = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        terminal.write_line(line)
