"""The hooks of this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.spec.spec import Spec
    from pytest_nsisolate.testprocess.sandbox_info import SandboxInfo


@pytest.hookspec(firstresult=True)
def pytest_nsisolate_spec(item: pytest.Item, spec: Spec) -> Spec | None:
    """Return a changed spec for *item*, or None to leave it (`dataclasses.replace` helps).

    Called in the runner, once per isolated test, when collection is done.
    """


@pytest.hookspec
def pytest_nsisolate_enter(item: pytest.Item, sandbox: SandboxInfo) -> None:
    """Run code inside the sandbox, in the test process, before the test's setup."""


@pytest.hookspec
def pytest_nsisolate_outcome(item: pytest.Item, outcome: Outcome) -> None:
    """Run code in the runner when the test process has ended, before its last report."""
