"""The rehearsal in the template: it works with this pytest, and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_nsisolate.testprocess import warmup

if TYPE_CHECKING:
    import pytest


class _Teller:
    """Stands for the template's own implementation of the protocol."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        self.phases.append(call.when)


def test_rehearsal_runs_and_leaves_nothing(pytester: pytest.Pytester) -> None:
    """Every phase runs each time, by built-in plugins alone; hooks and stack are as before."""
    items = pytester.getitems("def test_it(): pass")
    session, config = items[0].session, items[0].config
    teller, foreign = _Teller(), _Teller()
    teller.pytest_runtest_makereport.__func__.__module__ = warmup.__name__  # type: ignore[attr-defined]
    config.pluginmanager.register(teller)
    foreign_module = "somebody.conftest"

    class Foreign:
        def pytest_runtest_setup(self) -> None:
            foreign.phases.append("ran")

    Foreign.pytest_runtest_setup.__module__ = foreign_module
    config.pluginmanager.register(Foreign())
    before = [list(getattr(config.hook, name).get_hookimpls()) for name in warmup._HOOKS]
    warmup.rehearse(session)
    after = [list(getattr(config.hook, name).get_hookimpls()) for name in warmup._HOOKS]
    assert teller.phases == ["setup", "call", "teardown"] * warmup.TIMES
    assert not foreign.phases
    assert before == after
    assert not session._setupstate.stack
