"""Warm the template up: run pytest's own protocol a few times on an item that does nothing.

The interpreter specialises code after some executions (PEP 659). Without the
rehearsal each test process does that again, in pages that it must copy first, and
runs slower code until then. Only pytest's built-in plugins take part: for the time
of the rehearsal theirs are the only hook implementations, so that no code of a user
or of another plugin runs.

The rehearsal leaves nothing behind: the item is in no list, its reports go nowhere,
and it passes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from _pytest.fixtures import FuncFixtureInfo

from .pytest_private import only

#: Executions after which CPython has specialised what it will, with a margin.
TIMES = 12

_HOOKS = (
    "pytest_runtest_protocol",
    "pytest_runtest_setup",
    "pytest_runtest_call",
    "pytest_pyfunc_call",
    "pytest_runtest_teardown",
    "pytest_runtest_makereport",
    "pytest_report_to_serializable",
)
_OWN = ("_pytest.", __name__.partition(".")[0] + ".")


def _nothing() -> None:
    """Do nothing, as the test of the rehearsal."""


def _item(session: pytest.Session) -> pytest.Item:
    """Make a test function without fixtures, also without autouse fixtures."""
    fixtures = FuncFixtureInfo(argnames=(), initialnames=(), names_closure=[], name2fixturedefs={})
    item: pytest.Item = pytest.Function.from_parent(
        session, name="rehearsal", callobj=_nothing, fixtureinfo=fixtures
    )
    return item


def rehearse(session: pytest.Session) -> None:
    """Run the protocol `TIMES` times, in the template, whose hooks are set up already.

    It relies on private names of pytest, which `tests/unit/testprocess/test_warmup.py` checks. If
    one is gone, tests run too, only slower.
    """
    config = session.config
    if any(config.getoption(name, default=False) for name in ("setupshow", "usepdb", "trace")):
        return  # they write to the terminal
    hooks: list[Any] = [getattr(config.hook, name) for name in _HOOKS]
    with (
        only(hooks, lambda one: one.function.__module__.startswith(_OWN)),
        contextlib.suppress(Exception),
    ):
        item = _item(session)
        for _ in range(TIMES):
            config.hook.pytest_runtest_protocol(item=item, nextitem=None)
