"""The ``sandbox`` fixture."""

from __future__ import annotations

import pytest

from pytest_nsisolate.testprocess.sandbox_info import SandboxInfo, inside


@pytest.fixture
def sandbox() -> SandboxInfo:
    """Return the sandbox that this test runs in; skip a test that is not isolated."""
    if inside.sandbox is None:
        pytest.skip(
            "the sandbox fixture needs an isolated test: mark it with @pytest.mark.isolated, "
            "or run with --ns-isolate"
        )
    return inside.sandbox
