"""Gates on what this host can do, and the runs of a real pytest that the tests judge.

A test that needs a capability says so with ``@pytest.mark.needs("sandbox")``. What is missing
skips the test with the probed reason; where the environment names the capability in
``NSISOLATE_MUST_WORK`` (comma separated, the names of `helpers.capabilities`), the test fails
instead, so that a CI that lost a capability can't go green by skipping everything.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from helpers.capabilities import require
from helpers.hosts import host_state, nobody_directory
from helpers.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ["pytester"]
# For a guest with cgroup v2 alone; run by naming the directory.
collect_ignore = ["vm"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of the gates; take the signals that runs are ended by.

    Whoever started the tests in the background may have left them ignored, and
    every process started from here would ignore them as well.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    config.addinivalue_line("markers", "needs(*names): skip where the host lacks a capability")
    config.addinivalue_line("markers", "kernel: depends on the kernel rather than on Python")
    config.addinivalue_line("markers", "python: may well go otherwise with another Python")
    config.addinivalue_line("markers", "exhaustive: one more case of a kind (tox -e exhaustive)")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail where it must work, a test whose capability this host lacks."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            require(name)


@pytest.fixture
def require_capability() -> Callable[[str], None]:
    """Skip or fail the running test unless a capability works on this host."""
    return require


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs of pytest in a fresh directory, as the user who runs the tests."""
    return Run(path=pytester.path)


@pytest.fixture
def run_as_nobody() -> Iterator[Run]:
    """Runs of pytest without any privilege, in a directory that is all they can write to."""
    require("unprivileged")
    with nobody_directory() as (path, uid):
        yield Run(path=path, uid=uid)


@pytest.fixture(params=["root", "unprivileged"])
def run_as_each(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> Run:
    """Runs of pytest, once as root and once without privilege."""
    require(request.param)
    if request.param == "root":
        return Run(path=pytester.path)
    unprivileged: Run = request.getfixturevalue("run_as_nobody")
    return unprivileged


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Hold every test to this: mounts, links and our files of the host stay as they were."""
    before = host_state()
    yield
    assert not host_state() - before
