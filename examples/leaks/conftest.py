"""What a test leaves running is ended anyway, and named in its report. Here it fails the run, too.

``outcome.left`` has a line for each such process.
"""

import pytest

LEFT = pytest.StashKey[dict[str, list[str]]]()


def pytest_configure(config):
    config.stash[LEFT] = {}


def pytest_nsisolate_outcome(item, outcome):
    """Keep the leaks of an isolated test that has ended; pytest's own process runs this."""
    if outcome.left:
        item.config.stash[LEFT][item.nodeid] = outcome.left


def pytest_terminal_summary(terminalreporter, config):
    for nodeid, left in config.stash[LEFT].items():
        terminalreporter.line(f"LEAK {nodeid}: {', '.join(left)}")


def pytest_sessionfinish(session, exitstatus):
    if session.config.stash[LEFT] and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
