"""Private names of pluggy that the test process uses."""

from __future__ import annotations

import contextlib
from typing import Any

import pluggy

from pytest_nsisolate.testprocess.pytest_private import only

spec = pluggy.HookspecMarker("hooks")
impl = pluggy.HookimplMarker("hooks")


class Specs:
    @spec
    def called(self, names: list[str]) -> None: ...


class Plugin:
    def __init__(self, name: str) -> None:
        self.name = name

    @impl
    def called(self, names: list[str]) -> None:
        names.append(self.name)


def test_a_hook_has_only_the_wanted_implementations_in_the_block() -> None:
    manager = pluggy.PluginManager("hooks")
    manager.add_hookspecs(Specs)
    plugins = [Plugin(name) for name in "abc"]
    for plugin in plugins:
        manager.register(plugin)
    hook = manager.hook.called
    assert isinstance(hook._hookimpls, list)
    cached = manager.subset_hook_caller("called", [plugins[2]])  # as pytest keeps on nodes

    def names(caller: Any) -> list[str]:
        found: list[str] = []
        caller(names=found)
        return found

    with only([hook], lambda one: one.plugin is not plugins[0]):
        assert names(hook) == ["c", "b"]
        assert names(cached) == ["b"]
    assert names(hook) == ["c", "b", "a"]
    with contextlib.suppress(KeyError), only([hook], lambda one: False):
        assert names(hook) == names(cached) == []
        raise KeyError
    assert names(hook) == ["c", "b", "a"]
    assert names(cached) == ["b", "a"]
