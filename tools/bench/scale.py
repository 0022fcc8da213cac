"""How the cost of a test grows: with the runner's memory, the number of tests collected, the mounts
of the host, and the tests in flight; and what a test in flight takes of memory.

Each row is a pair of runs side by side, with and without isolation, in as many rounds as asked
for; a figure is the median over the rounds. The tables go to standard output as Markdown, the
plots into ``--plots`` as SVG. Nothing is asserted about time.

Needs PyPI for the first run in a ``--workdir``; the mounts are made in a mount namespace of its
own, which takes root or a user namespace.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.run import PACKAGES, clean_environment, prepare, workdir, write_suite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HEAPS_MB = (0, 50, 500, 2000)
COLLECTED = (10, 1000, 20000)
MOUNTS = (30, 300)
IN_FLIGHT = (1, 2, 4, 8, 16, 32)
TESTS = 200
COLOURS = ("#2457a7", "#b5651d")
WAIT = 0.05
"""Seconds that each test of the measurement of tests in flight sleeps."""

HEAP = """
import os
size = int(os.environ["BENCH_HEAP_MB"]) << 20
# Small objects, as a program's data is, each page of them touched.
KEPT = [bytes(1000) for _ in range(size // 1033)]
"""
"""A conftest that gives the runner as much memory as asked for."""
CLOCK = """
import time
TIMES = []

def pytest_runtest_logfinish():
    TIMES.append(time.perf_counter())

def pytest_sessionfinish():
    if len(TIMES) > 1000:
        first, last = TIMES[500] - TIMES[0], TIMES[-1] - TIMES[-501]
        print(f"\\nLAST/FIRST {last / first:.3f}")
"""
SLEEP = "import time\n\ndef test_{number}():\n    time.sleep({wait})\n"
MOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.geteuid(), os.getegid()
if libc.unshare(0x20000 if uid == 0 else 0x10020000):
    sys.exit("no mount namespace")
if uid:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        open(f"/proc/self/{name}", "w").write(text)
libc.mount(b"none", b"/", None, 0x44000, None)
here = os.path.abspath("mounts")
os.makedirs(here, exist_ok=True)
there = len(open("/proc/self/mountinfo").readlines())
for number in range(max(0, int(sys.argv[1]) - there)):
    path = f"{here}/{number}"
    os.makedirs(path, exist_ok=True)
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", 0, b"size=4k"):
        sys.exit("a mount failed")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command where so many things are mounted."""


@dataclass
class Series:
    """One table: a row for each x, a column for each figure.

    Attributes:
        drawn: how many of the columns, which then have one unit, are in the plot.
    """

    title: str
    x: str
    columns: tuple[str, ...]
    rows: list[tuple[float, list[float]]] = field(default_factory=list)
    drawn: int = 1

    def markdown(self) -> str:
        """The table."""
        lines = [f"### {self.title}", "", f"| {self.x} | {' | '.join(self.columns)} |"]
        lines.append("|--:" * (len(self.columns) + 1) + "|")
        for x, figures in self.rows:
            cells = ["" if math.isnan(one) else f"{one:.2f}" for one in figures]
            lines.append(f"| {x:g} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def svg(self) -> str:
        """A chart of the first columns over x, by hand: two axes, lines, and their points."""
        width, height, left, right, bottom = 480, 240, 50, 40, 30
        top = max(figures[number] for _, figures in self.rows for number in range(self.drawn))
        step = (width - left - right) / max(1, len(self.rows) - 1)

        def at(place: int, figure: float) -> tuple[float, float]:
            high = (height - bottom - 30) * figure / (top or 1.0)
            return left + 15 + place * step, height - bottom - high

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            "<style>text { font: 11px sans-serif }</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<path d="M{left},20V{height - bottom}H{width - 10}" fill="none" stroke="gray"/>',
            f'<text x="{width - 10}" y="{height - 4}" text-anchor="end">{self.x}</text>',
        ]
        for number in range(self.drawn):
            colour, middle = COLOURS[number], 'text-anchor="middle"'
            name = f'<text x="{left + 180 * number}" y="12" fill="{colour}">{self.columns[number]}'
            points = [at(place, row[number]) for place, (_, row) in enumerate(self.rows)]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            drawn = f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>'
            parts += [f"{name}</text>", drawn]
            for (x, y), (_, row) in zip(points, self.rows, strict=True):
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
                beside = -7 if number == self.drawn - 1 else 15
                where = f'x="{x:.1f}" y="{y + beside:.1f}"'
                parts.append(f'<text {where} {middle} fill="{colour}">{row[number]:.1f}</text>')
        for place, (value, _) in enumerate(self.rows):
            where = f'x="{at(place, 0)[0]:.1f}" y="{height - bottom + 14}"'
            parts.append(f'<text {where} text-anchor="middle">{value:g}</text>')
        return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Bench:
    """Where runs take place, and how often."""

    python: Path
    path: Path
    rounds: int

    def run(
        self,
        suite: Path,
        *arguments: str,
        prefix: Sequence[str] = (),
        extra: dict[str, str] | None = None,
    ) -> tuple[float, str]:
        """Seconds that one pytest took, and what it printed; it has to pass."""
        command = [str(self.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        begin = time.perf_counter()
        done = subprocess.run(
            [*prefix, *command],
            cwd=suite,
            env={**clean_environment(), **(extra or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.perf_counter() - begin
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        return wall, done.stdout

    def beyond(
        self,
        suite: Path,
        tests: int,
        *,
        prefix: Sequence[str] = (),
        extra: dict[str, str] | None = None,
    ) -> tuple[float, str]:
        """Milliseconds a test beyond the plain run beside it, and what the last run printed."""
        costs, text = [], ""
        for _ in range(self.rounds):
            plain, _ = self.run(suite, "-p", "no:nsisolate", prefix=prefix, extra=extra)
            ours, text = self.run(suite, "--ns-isolate", prefix=prefix, extra=extra)
            costs.append((ours - plain) * 1000 / tests)
        return statistics.median(costs), text


def by_heap(bench: Bench) -> Series:
    """Against the memory of the runner: the fork copies its page tables."""
    columns = ("ms a test", "floor, ms a test")
    series = Series("The runner's memory", "MB of small objects", columns, drawn=2)
    suite = write_suite(bench.path / f"heap-{TESTS}", TESTS)
    (suite / "conftest.py").write_text(HEAP)
    for size in HEAPS_MB:
        extra = {"BENCH_HEAP_MB": str(size)}
        ours, _ = bench.beyond(suite, TESTS, extra=extra)
        floors = []
        for _ in range(bench.rounds):
            plain, _ = bench.run(suite, "-p", "no:nsisolate", extra=extra)
            floor, _ = bench.run(suite, "-p", "no:nsisolate", "-p", "floor", extra=extra)
            floors.append((floor - plain) * 1000 / TESTS)
        series.rows.append((size, [ours, statistics.median(floors)]))
    return series


def by_collected(bench: Bench) -> Series:
    """Against the number of tests, and whether the last 500 cost more than the first."""
    series = Series("Tests collected", "tests", ("ms a test", "last 500 / first 500"))
    for tests in COLLECTED:
        suite = write_suite(bench.path / f"collected-{tests}", tests)
        (suite / "conftest.py").write_text(CLOCK)
        one = Bench(bench.python, bench.path, 1 if tests > 5000 else bench.rounds)
        cost, text = one.beyond(suite, tests)
        found = re.search(r"LAST/FIRST ([\d.]+)", text)
        series.rows.append((tests, [cost, float(found[1]) if found else math.nan]))
    return series


def by_mounts(bench: Bench) -> Series:
    """Against the mounts of the host: each sandbox copies them."""
    series = Series("Mounts of the host", "mounts", ("ms a test",))
    suite = write_suite(bench.path / f"mounts-{TESTS}", TESTS)
    for number in MOUNTS:
        prefix = (sys.executable, "-c", MOUNT, str(number))
        cost, _ = bench.beyond(suite, TESTS, prefix=prefix)
        series.rows.append((number, [cost]))
    return series


def by_flight(bench: Bench) -> Series:
    """Tests that wait: how far more at once shortens the run, and what each takes of memory."""
    columns = ("ms a test", "speed-up", "MiB a test in flight")
    series = Series(f"Tests in flight, each waits {WAIT * 1000:g} ms", "--ns-jobs", columns)
    suite = bench.path / "flight"
    suite.mkdir(exist_ok=True)
    (suite / "pytest.ini").write_text("[pytest]\n")
    body = "\n\n".join(SLEEP.format(number=number, wait=WAIT) for number in range(100))
    (suite / "test_it.py").write_text(body)
    hold = bench.path / "hold"
    hold.mkdir(exist_ok=True)
    (hold / "pytest.ini").write_text("[pytest]\n")
    body = "\n\n".join(SLEEP.format(number=number, wait=100) for number in range(40))
    (hold / "test_it.py").write_text(body)
    alone = memory_in_flight(bench, hold, 1)
    first = 0.0
    for jobs in IN_FLIGHT:
        walls = [
            bench.run(suite, "--ns-isolate", "--ns-jobs", str(jobs))[0] for _ in range(bench.rounds)
        ]
        wall = statistics.median(walls)
        first = first or wall
        more = (memory_in_flight(bench, hold, jobs) - alone) / (jobs - 1) if jobs > 1 else alone
        series.rows.append((jobs, [wall * 10, first / wall, more]))
    return series


def memory_in_flight(bench: Bench, suite: Path, jobs: int) -> float:
    """MiB of all processes of a run (proportional set size) while so many tests wait."""
    command = [str(bench.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ns-isolate"]
    process = subprocess.Popen(
        [*command, "--ns-jobs", str(jobs)],
        cwd=suite,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        size = before = -1.0
        while time.monotonic() < deadline:
            time.sleep(1)
            before, size = size, sum(pss(pid) for pid in family(process.pid)) / 1024
            if size > 0 and abs(size - before) < 0.02 * size:
                break
        return size
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def family(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{root}/task"):
            for pid in Path(f"/proc/{root}/task/{task}/children").read_text().split():
                yield from family(int(pid))


def pss(pid: int) -> int:
    """Kibibytes, of shared pages the part that falls to this process."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


MEASURES: dict[str, Callable[[Bench], Series]] = {
    "heap": by_heap,
    "collected": by_collected,
    "mounts": by_mounts,
    "flight": by_flight,
}


def main() -> int:
    """Measure what was asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs a row (default 3)")
    parser.add_argument("--workdir", type=Path, help="directory to keep the environment in")
    parser.add_argument("--plots", type=Path, help="directory for the plots")
    parser.add_argument("measures", nargs="*", help=f"of {', '.join(MEASURES)}; default all")
    options = parser.parse_args()
    unknown = set(options.measures) - MEASURES.keys()
    if unknown or options.rounds < 1:
        parser.error(f"measures are {', '.join(MEASURES)}; --rounds from 1 up")
    with workdir(options.workdir) as path:
        bench = Bench(prepare(path / "ours", PACKAGES["ours"]), path, options.rounds)
        print(
            f"Python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} CPUs, medians of ",
            end="",
        )
        print(f"{options.rounds} rounds\n")
        for name in options.measures or MEASURES:
            series = MEASURES[name](bench)
            print(series.markdown(), flush=True)
            if options.plots is not None:
                options.plots.mkdir(parents=True, exist_ok=True)
                (options.plots / f"{name}.svg").write_text(series.svg())
    return 0


if __name__ == "__main__":
    sys.exit(main())
