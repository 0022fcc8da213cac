"""A long session costs its helpers no more at the end than at the start."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

TESTS = int(os.environ.get("NSISOLATE_GROWTH_TESTS", "600"))
WINDOW = 20
MEGABYTES = 4
IN_FLIGHT = 2 * 6
"""Descriptors that two orders carry through the template: now and then a sample sees them."""

SAMPLER = """
    import json, os, re

    FIRST, LAST, WINDOW = {first}, {last}, {window}
    peaks = {{}}
    count = 0

    def status(pid):
        with open(f"/proc/{{pid}}/status") as stream:
            return dict(re.findall(r"^(\\w+):\\s+(\\w+)", stream.read(), re.MULTILINE))

    def family(runner):
        everyone = {{}}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    everyone[int(name)] = status(name)
                except (FileNotFoundError, ProcessLookupError):
                    continue
        children = [pid for pid, found in everyone.items() if found["PPid"] == str(runner)]
        roles = {{"runner": runner}}
        for pid in children:
            with open(f"/proc/{{pid}}/cmdline") as stream:
                roles["keeper" if "keeper" in stream.read() else "template"] = pid
        return roles, everyone

    def sample():
        roles, everyone = family(os.getpid())
        for role, pid in roles.items():
            dead = [p for p in everyone.values() if p["State"] == "Z" and p["PPid"] == str(pid)]
            yield role, {{
                "fds": len(os.listdir(f"/proc/{{pid}}/fd")),
                "threads": int(everyone[pid]["Threads"]),
                "zombies": len(dead),
                "megabytes": int(everyone[pid].get("VmRSS", 0)) // 1024,
            }}

    def pytest_runtest_logfinish():
        global count
        count += 1
        for name, start in (("first", FIRST), ("last", LAST)):
            if start <= count < start + WINDOW:
                for role, values in sample():
                    peak = peaks.setdefault(role, {{}}).setdefault(name, values)
                    for key, value in values.items():
                        peak[key] = max(peak[key], value)

    def pytest_sessionfinish():
        with open("peaks.json", "w") as stream:
            json.dump(peaks, stream)
"""

Peaks = dict[str, dict[str, dict[str, int]]]


def peaks(run: Run, *args: str) -> Peaks:
    """The peak of each value in a window near the start and one near the end, by role."""
    result = run(*args, timeout=60 + TESTS / 5)
    result.expect(passed=TESTS)
    found: Peaks = json.loads((run.path / "peaks.json").read_text())
    return found


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_growth(run: Run, jobs: int) -> None:
    """Descriptors, threads, zombies and memory of runner, keeper and template stay flat."""
    last = TESTS - 2 * WINDOW - 10  # well before the queue of prepared sandboxes runs dry
    run.write("conftest.py", SAMPLER.format(first=100, last=last, window=WINDOW))
    run.tests(f"""
    @pytest.mark.parametrize("n", range({TESTS}))
    def test_it(n):
        pass
    """)
    plain = peaks(run)["runner"]
    print(f"plain: {plain}")  # noqa: T201  as below
    isolated = peaks(run, "--ns-isolate", f"--ns-jobs={jobs}")
    assert set(isolated) == {"runner", "keeper", "template"}
    # What pytest itself keeps of each report is in the memory of the runner either way.
    own = plain["last"]["megabytes"] - plain["first"]["megabytes"]
    for role, windows in isolated.items():
        first, final = windows["first"], windows["last"]
        print(f"{role}: first {first}, last {final}")  # noqa: T201  the values are the evidence
        assert final["fds"] <= first["fds"] + IN_FLIGHT, role
        assert final["threads"] == first["threads"], role
        # A sample may see those that have just ended, of the running and the parked.
        assert final["zombies"] <= max(first["zombies"], jobs + 1), role
        allowed = MEGABYTES + (own if role == "runner" else 0)
        assert final["megabytes"] <= first["megabytes"] + allowed, role


def test_no_process_without_isolated_tests(run: Run) -> None:
    """A session that isolates nothing starts no helper."""
    run.write("conftest.py", SAMPLER.format(first=1, last=1, window=1))
    run.tests("def test_it(): pass")
    run("--ns-jobs=4").expect(passed=1)
    assert list(json.loads((run.path / "peaks.json").read_text())) == ["runner"]
