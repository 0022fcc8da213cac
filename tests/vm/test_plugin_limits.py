"""Limits through pytest, in the situations of `guest.py`: reached, kept, measured, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.cgroups import delegation
from pytest_nsisolate.cgroups import layout as cgroup_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.run import Run

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")
REFUSED = os.environ.get("NSISOLATE_VM") == "refused"
able = pytest.mark.skipif(REFUSED, reason="limits can't be had here, on purpose")


def ours() -> set[str]:
    """Cgroups that a session made, or systemd for one; not that which these tests are in."""
    own = delegation.own_base(cgroup_layout.find().hierarchies[0])
    found = {str(path) for path in CGROUPS.glob("**/*nsisolate-*")}
    return {path for path in found if path != own and not own.startswith(path)}


@pytest.fixture(autouse=True)
def no_cgroup_is_left() -> Iterator[None]:
    """A scope goes as soon as systemd has noticed that it is empty."""
    yield
    deadline = time.monotonic() + 10
    runner = {path for path in ours() if path.endswith("/" + delegation.LEAF)}
    while ours() - runner and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ours() <= runner


@able
def test_out_of_memory(run: Run) -> None:
    """In one process, in a child, in files: the test fails for it, and its neighbours pass."""
    run.tests("""
    @pytest.mark.isolated(memory="64M")
    def test_own():
        bytearray(200 << 20)

    @pytest.mark.isolated(memory="64M")
    def test_child():
        subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"])

    @pytest.mark.isolated(memory="64M")
    def test_files():
        with open("/tmp/large", "wb") as stream:
            for _ in range(200):
                stream.write(bytes(1 << 20))

    @pytest.mark.isolated(memory="64M")
    def test_modest():
        bytearray(40 << 20)

    @pytest.mark.isolated
    def test_neighbour():
        bytearray(100 << 20)
    """)
    result = run("--ns-jobs=2", "--ns-properties").expect(failed=3, passed=2)
    for name in ("test_own", "test_child", "test_files"):
        text = result.of(name).text
        assert re.match(r"OUT OF MEMORY: limit 64 MiB, peak 6[345](\.\d+)? MiB\n", text), text
        assert result.value(name, "ns_outcome") == "out of memory"


@able
def test_use_is_measured_by_the_group(run: Run) -> None:
    run.tests("""
    pytestmark = pytest.mark.isolated(memory="1G", cpus=2, pids=30)

    def test_empty():
        pass

    def test_child():
        subprocess.run([sys.executable, "-c", "bytearray(100 << 20)"], check=True)

    def test_busy():
        while time.process_time() < 1:
            pass
    """)
    result = run("--ns-report=report.json", "--ns-properties").expect(passed=3)
    empty = result.value("test_empty", "ns_peak_memory")
    assert empty < 20 * MIB
    assert 99 * MIB <= result.value("test_child", "ns_peak_memory") - empty <= 120 * MIB
    assert 0.9 <= result.value("test_busy", "ns_cpu") <= 1.5
    report = json.loads((run.path / "report.json").read_text("utf-8"))
    text = json.dumps(report)
    assert text.count('"source": "cgroup"') >= 3
    assert '"source": "wait4"' not in text


@able
def test_a_quarter_of_a_cpu(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(cpus=0.25)
    def test_quarter():
        begin, before = time.monotonic(), time.process_time()
        while time.process_time() < before + 1:
            pass
        assert 3.4 <= time.monotonic() - begin <= 4.6
    """)
    run().expect(passed=1)


@able
def test_too_many_processes(run: Run) -> None:
    run.tests("""
    pytestmark = pytest.mark.isolated(pids=20)

    def test_not_handled():
        for _ in range(30):
            if os.fork() == 0:
                time.sleep(100)

    def test_bomb():
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """)
    result = run().expect(failed=2)
    for name in ("test_not_handled", "test_bomb"):
        assert result.of(name).text.startswith("TOO MANY PROCESSES: limit 20\n")


@able
def test_timeout_of_a_frozen_sandbox(run: Run) -> None:
    run.tests("""
    @pytest.mark.isolated(memory="64M", timeout=1)
    def test_waits():
        subprocess.Popen(["sleep", "1001"])
        time.sleep(100)
    """)
    everything = run().expect(failed=1).of("test_waits").everything
    assert everything.startswith("TIMED OUT after 1 s"), everything
    assert "sleep 1001" in everything


@able
def test_runner_killed(run: Run) -> None:
    """The kernel ends the processes; the next session removes what is left of their groups."""
    run.tests("""
    @pytest.mark.isolated(memory="64M")
    @pytest.mark.parametrize("number", range(2))
    def test_sleeps(number):
        open(f"begun-{number}", "w").close()
        time.sleep(100)
    """)
    running = run.start("--ns-jobs=2")
    try:
        while len(list(run.path.glob("begun-*"))) < 2:
            time.sleep(0.05)
            assert running.process.poll() is None
        running.process.kill()
        running.process.wait()
    finally:
        running.kill()
    run.tests("""
    @pytest.mark.isolated(memory="64M")
    def test_it():
        pass
    """)
    run().expect(passed=1)


@pytest.mark.skipif(not REFUSED, reason="limits can be had here")
def test_refusal(run: Run) -> None:
    """The limit is not dropped: controller, backend, and the command that mends it."""
    run.tests("""
    @pytest.mark.isolated(memory="64M")
    def test_limited():
        pass

    @pytest.mark.isolated
    def test_free():
        pass
    """)
    result = run()
    assert result.verdicts == {"test_limited": "error", "test_free": "passed"}, str(result)
    text = result.of("test_limited", "setup").text
    assert text.startswith("SANDBOX FAILED at limit memory by cgroup v2"), text
    assert "systemd-run --user --scope -p Delegate=yes" in text
    skipped = run("--ns-missing=skip")
    assert skipped.verdicts == {"test_limited": "skipped", "test_free": "passed"}, str(skipped)


def command(*options: str, source: str) -> tuple[dict[str, Any], str]:
    """``nsisolate run`` of a Python program: what it says as JSON, and all that it says."""
    words = ("-m", "pytest_nsisolate", "run", "--json", *options, "--", sys.executable, "-c")
    done = subprocess.run(
        [sys.executable, *words, source], capture_output=True, text=True, check=False, timeout=180
    )
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    assert found["exit_code"] == done.returncode, done.stderr
    return found, done.stderr


@able
def test_command_out_of_memory() -> None:
    found, _ = command("--memory", "64M", source="bytearray(200 << 20)")
    assert found["outcome"] == "out of memory"
    assert found["cgroup"] == "v2"
    assert found["messages"][0].startswith("OUT OF MEMORY: limit 64 MiB, peak 6")


@able
def test_command_is_measured() -> None:
    source = "import time\nkept = bytearray(100 << 20)\nwhile time.process_time() < 1: pass"
    found, _ = command("--memory", "1G", "--cpus", "2", source=source)
    assert found["exit_code"] == 0
    assert 100 * MIB <= found["memory_peak"] <= 125 * MIB
    assert 0.9 <= found["cpu_user"] + found["cpu_system"] <= 1.6


@pytest.mark.skipif(not REFUSED, reason="limits can be had here")
def test_refusal_of_a_command() -> None:
    found, text = command("--memory", "64M", source="print('ran')")
    assert found["exit_code"] == 125
    assert "LIMIT CAN'T BE HELD: memory by cgroup v2" in text
    assert "systemd-run --user --scope -p Delegate=yes" in text
