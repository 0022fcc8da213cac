"""The least that a process per test can cost: a pytest plugin that forks, and does nothing else.

One bare ``os.fork`` per test, pytest's own ``runtestprotocol`` in the child, the reports as JSON
over a pipe, and reports logged in the parent. No timeout, no capture of crashes, no isolation: it
is the mark that the benchmark measures against, and no more.
"""

from __future__ import annotations

import json
import os
import traceback
from typing import TYPE_CHECKING, NoReturn

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool:
    """Run ``item`` in a fork of this process."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in forked_reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def forked_reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """Yield the reports that a forked child made of ``item``."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        run_child(item, write_end)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        payload = stream.read()
    os.waitpid(child, 0)
    for data in json.loads(payload):
        yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)


def run_child(item: pytest.Item, write_end: int) -> NoReturn:
    """Run ``item`` to its end, write its reports and leave without any clean-up."""
    try:
        reports = runtestprotocol(item, log=False, nextitem=None)
        hook = item.config.hook.pytest_report_to_serializable
        payload = json.dumps([hook(config=item.config, report=report) for report in reports])
        with open(write_end, "wb") as stream:
            stream.write(payload.encode())
    except BaseException:  # noqa: BLE001  a child must never return into the parent's session
        traceback.print_exc()
    finally:
        os._exit(0)
