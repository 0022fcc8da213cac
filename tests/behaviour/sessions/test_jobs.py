"""How many tests run at once: what ``--ns-jobs auto`` comes to, and hosts with little room."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import COMMON, TWO_NET_NAMESPACES
from pytest_nsisolate.runner import job_count

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.kernel


@pytest.mark.needs("sandbox")
def test_auto_is_said_and_used(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated
    def test_it():
        pass
    """)
    result = run("--ns-jobs=auto").expect(passed=1)
    found = re.search(r"^nsisolate: --ns-jobs auto is (\d+) \((.*)\)$", result.out, re.MULTILINE)
    assert found
    assert int(found[1]) == job_count.choose().jobs
    assert "--ns-jobs auto" not in run("--ns-jobs=1").expect(passed=1).out


@pytest.mark.needs("sandbox")
def test_auto_counts_usable_cpus_and_memory_limits(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated
    def test_it():
        pass
    """)
    run.write(
        "conftest.py",
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    )
    result = run("--ns-jobs=auto").expect(passed=1)
    assert "nsisolate: --ns-jobs auto is 1 (1 CPU)\n" in result.out


@pytest.mark.needs("sandbox")
@pytest.mark.parametrize("kinds", [1, 2])
def test_tests_wait_where_namespaces_are_used_up(run: Run, kinds: int) -> None:
    """Also where what is ready is of another kind than what is needed."""
    run.tests(f"""
    def of(kind):
        @pytest.mark.isolated(hostname=f"kind{{kind}}")
        @pytest.mark.parametrize("number", range(3))
        def test_it(number):
            time.sleep(1)
        return test_it

    for kind in range({kinds}):
        globals()[f"test_{{kind}}"] = of(kind)
    """)
    # Without the wait for namespaces that are freed late, which would do for tests this short.
    run.write(
        "conftest.py",
        "from pytest_nsisolate.runner.servers import sandbox_pool; sandbox_pool._RETRIES = 12",
    )
    prefix = (sys.executable, "-c", COMMON + TWO_NET_NAMESPACES)
    run("--ns-jobs=6", prefix=prefix).expect(passed=3 * kinds)
