"""The shipped examples do what they say; some fail on purpose, and say what went wrong."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from helpers.project import ROOT

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")
EXAMPLES = ROOT / "examples"
LONG = 240
"""Seconds for a run that starts servers, on a machine that is very busy."""


def of(run: Run, name: str, *args: str, jobs: int = 2, env: dict[str, str] | None = None) -> Result:
    """What becomes of an example, in a copy of its directory."""
    for path in (EXAMPLES / name).iterdir():
        if path.is_file():
            shutil.copy(path, run.path)
    return run(f"--ns-jobs={jobs}", *args, env=env, timeout=LONG)


@pytest.mark.parametrize("jobs", [1, 2])
def test_quickstart(run_as_each: Run, jobs: int) -> None:
    """Green but for the crash, which is expected."""
    result = of(run_as_each, "quickstart", jobs=jobs)
    verdicts = result.verdicts
    assert result.ret == 0, str(result)
    assert sorted(set(verdicts.values())) == ["passed", "xfailed"], str(result)
    assert len(verdicts) == 10, str(result)


@pytest.mark.parametrize("jobs", [1, 2])
def test_cluster(run_as_each: Run, jobs: int) -> None:
    """Partitions, a slow link, a pulled cable, programs: all green, and again and again."""
    of(run_as_each, "cluster", jobs=jobs).expect(passed=6)


@pytest.mark.parametrize(
    ("module", "missing", "tests"),
    [("test_redis.py", "needs redis-server", 5), ("test_postgresql.py", "needs PostgreSQL", 3)],
)
def test_database(run_as_each: Run, module: str, missing: str, tests: int) -> None:
    """A real server in every test, two at once on one port; skipped where it isn't installed."""
    result = of(run_as_each, "database", module)
    if set(result.verdicts.values()) == {"skipped"}:
        assert missing in result.phases[0].text, str(result)
        result.expect(skipped=tests)
        pytest.skip(missing)
    result.expect(passed=tests)


def test_web(run_as_each: Run) -> None:
    """A service on port 80 in every test, two at once."""
    of(run_as_each, "web").expect(passed=4)


def test_network(run_as_each: Run) -> None:
    """Cuts, cables and a rate work everywhere; delay and loss are skipped without netem."""
    result = of(run_as_each, "network")
    lossy = result.verdicts.pop("test_flaky.py::test_long_and_lossy_link")
    assert lossy in {"passed", "skipped"}, str(result)
    if lossy == "skipped":
        assert "sch_netem" in result.of("test_long_and_lossy_link").text
    result.expect(passed=5)


@pytest.mark.needs("limits")
def test_budget(run: Run) -> None:
    """Who keeps to a budget passes; who does not fails alone, and is told which it was."""
    of(run, "budget", "test_budget.py").expect(passed=5)
    over = of(run, "budget", "test_over_budget.py").expect(passed=1, failed=3)
    endings = {phase.nodeid.split("::")[1]: phase.text for phase in over.phases if phase.text}
    assert {name: text.splitlines()[0] for name, text in endings.items()} == {
        "test_takes_too_much_memory": "OUT OF MEMORY: limit 64 MiB, peak 64 MiB",
        "test_fills_tmp_with_too_much": "OUT OF MEMORY: limit 64 MiB, peak 64 MiB",
        "test_starts_too_many_processes": "TOO MANY PROCESSES: limit 8",
    }


def test_leaks(run_as_each: Run) -> None:
    """All tests pass, the leaks are named, and the conftest makes the run fail for them."""
    result = of(run_as_each, "leaks")
    assert list(result.verdicts.values()) == ["passed"] * 5, str(result)
    leaks = re.findall(r"^LEAK \S+::(\w+): (sleep \d+) \(pid \d+\)$", result.out, re.MULTILINE)
    assert leaks == [
        ("test_forgets_a_child", "sleep 1000"),
        ("test_forgets_what_a_shell_started", "sleep 2000"),
        ("test_forgets_a_daemon", "sleep 3000"),
    ], str(result)
    assert result.ret == 1


def test_hermetic(run_as_each: Run) -> None:
    """Green, whatever the environment says, and nothing is left; the other says what it tried."""
    secret = {"PRICES_TOKEN": "secret", "TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8"}
    of(run_as_each, "hermetic", "test_hermetic.py", env=secret).expect(passed=4)
    result = of(run_as_each, "hermetic", "test_not_hermetic.py").expect(failed=1)
    phases = [result.of("test_asks_the_network", when) for when in ("call", "teardown")]
    tried = "\n".join(phase.everything for phase in phases)
    assert "look up: prices.example.com" in tried
    assert f"open for writing: {run_as_each.path}/last-report.txt" in tried
    assert not list(run_as_each.path.glob("*report.txt"))
    assert not (run_as_each.path / ".report-generator").exists()  # HOME is there
