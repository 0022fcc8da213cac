"""The collector is spared in the runner alone, where nothing but reports is made."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.runner.memory_tuning import Spared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.run import Run

CONFTEST = """
import gc, os, pytest

RUNNER = os.getpid()
gc.set_threshold(650, 9, 8)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    if os.getpid() == RUNNER and report.when == "call":
        report.user_properties.append(("runner", gc.get_threshold()[0]))

def pytest_unconfigure():
    if os.getpid() == RUNNER:
        assert gc.get_threshold() == (650, 9, 8)
        assert gc.get_freeze_count() == 0
"""
TEST = """
    def test_isolated(record_property):
        import gc
        record_property("inside", gc.get_threshold())
"""


@pytest.fixture
def collector() -> Iterator[None]:
    before, enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*before)
    (gc.enable if enabled else gc.disable)()
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_as_it_was() -> None:
    """What is changed is put back; what somebody has chosen on purpose is not changed."""
    gc.enable()
    gc.set_threshold(700, 10, 10)
    spared = Spared()
    assert gc.get_threshold()[0] > 700
    assert gc.get_freeze_count() > 0
    spared.resume()
    assert gc.get_threshold()[0] == 700
    assert gc.get_freeze_count() == 0
    for chosen in (0, 1_000_000):
        gc.set_threshold(chosen, 10, 10)
        Spared()
        assert gc.get_threshold()[0] == chosen
        assert gc.get_freeze_count() == 0


@pytest.mark.needs("sandbox")
def test_in_the_runner_alone(run: Run) -> None:
    """A test sees what its conftest has set, and so do plugins once the tests are over."""
    run.write("conftest.py", CONFTEST)
    run.tests(TEST)
    result = run("--ns-isolate").expect(passed=1)
    properties = dict(result.of("test_isolated", "call").properties)
    assert properties["inside"] == [650, 9, 8]
    assert properties["runner"] > 650
    run.tests(
        TEST, "    @pytest.mark.isolated(False)\n    def test_in_the_runner():\n        pass\n"
    )
    result = run("--ns-isolate").expect(passed=2)
    assert dict(result.of("test_isolated", "call").properties)["runner"] == 650
