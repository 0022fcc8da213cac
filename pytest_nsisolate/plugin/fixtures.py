"""The ``sandbox`` fixture."""

from __future__ import annotations

import pytest

from pytest_nsisolate.testprocess.sandbox_info import SandboxInfo, inside


@pytest.fixture
def sandbox() -> SandboxInfo:
    """The sandbox this test runs in; a test that is not isolated is skipped."""
    if inside.sandbox is None:
        pytest.skip(
            "the sandbox fixture needs an isolated test: mark it with @pytest.mark.isolated, "
            "or run with --ns-isolate"
        )
    return inside.sandbox
