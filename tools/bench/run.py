"""What isolation costs per test, as ratios to pytest-forked and to a bare fork per test.

Every variant runs the same suite of trivial tests under the same version of pytest. A round runs
all variants once, each round begins at another one, and the first round warms up and is dropped.
The cost of a variant is the time of its whole pytest process beyond that of plain pytest in the
same environment and round, divided by the number of tests; the table shows medians over the
rounds. Nothing is asserted about time: the targets are printed next to the ratios.

Needs PyPI for the first run in a ``--workdir``.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BENCH = Path(__file__).resolve().parent
PROJECT = BENCH.parents[1]

PYTEST = "pytest==9.1.1"
"""The newest pytest under which pytest-forked 1.7.5 works: under 9.2 it fails every test."""
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "plain": (PYTEST,),
    "forked": (PYTEST, "pytest-forked==1.7.5"),
    "ours": (PYTEST, str(PROJECT)),
}
"""What is installed in each environment."""

TESTS_PER_FILE = 50
START_REPEATS = 5
"""Runs per round of the one-test session, whose difference is a few milliseconds."""


@dataclass(frozen=True)
class Variant:
    """One way to run the suite, and the variant of the same environment that it is held against.

    Attributes:
        copies: so many at once, each with the whole suite.
    """

    name: str
    environment: str
    arguments: tuple[str, ...] = ()
    baseline: str = ""
    suite: str = "trivial"
    copies: int = 1


ISOLATED = ("--ns-isolate", "--ns-jobs", "1")
VARIANTS = (
    Variant("plain", "plain"),
    Variant("floor", "plain", ("-p", "floor"), baseline="plain"),
    Variant("floor-pair", "plain", ("-p", "floor"), baseline="plain", copies=2),
    Variant("forked-plain", "forked"),
    Variant("forked", "forked", ("--forked",), baseline="forked-plain"),
    Variant("ours-off", "ours", ("-p", "no:nsisolate")),
    Variant("ours-idle", "ours", baseline="ours-off"),
    Variant("ours-1", "ours", ("--ns-isolate", "--ns-jobs", "1"), baseline="ours-off"),
    Variant("ours-2", "ours", ("--ns-isolate", "--ns-jobs", "2"), baseline="ours-off"),
    Variant(
        "ours-limits",
        "ours",
        ("--ns-isolate", "--ns-jobs", "1", "--ns-memory", "1G", "--ns-cpus", "2"),
        baseline="ours-1",
    ),
    Variant(
        "ours-topology",
        "ours",
        ("--ns-isolate", "--ns-jobs", "1", "--ns-net", "a b c"),
        baseline="ours-1",
    ),
    Variant("ours-readonly", "ours", (*ISOLATED, "--ns-fs", "readonly"), baseline="ours-1"),
    Variant("ours-overlay", "ours", (*ISOLATED, "--ns-fs", "overlay"), baseline="ours-1"),
    Variant("ours-rootfs", "ours", (*ISOLATED, "--ns-rootfs=ROOTFS"), baseline="ours-1"),
    Variant("modules-off", "ours", ("-p", "no:nsisolate"), suite="modules"),
    Variant(
        "ours-scope",
        "ours",
        ("--ns-isolate", "--ns-scope", "module"),
        baseline="modules-off",
        suite="modules",
    ),
    Variant(
        "ours-scope-2",
        "ours",
        ("--ns-isolate", "--ns-scope", "module", "--ns-jobs", "2"),
        baseline="modules-off",
        suite="modules",
    ),
    Variant("many-off", "ours", ("-p", "no:nsisolate"), suite="many modules"),
    Variant(
        "ours-scope-many",
        "ours",
        ("--ns-isolate", "--ns-scope", "module"),
        baseline="many-off",
        suite="many modules",
    ),
    Variant(
        "ours-scope-many-2",
        "ours",
        ("--ns-isolate", "--ns-scope", "module", "--ns-jobs", "2"),
        baseline="many-off",
        suite="many modules",
    ),
    Variant("short-off", "ours", ("-p", "no:nsisolate"), suite="short"),
    Variant("ours-short", "ours", ISOLATED, baseline="short-off", suite="short"),
    Variant("fixture-off", "ours", ("-p", "no:nsisolate"), suite="fixture"),
    Variant(
        "ours-snapshot",
        "ours",
        ("--ns-isolate", "--ns-snapshot", "module"),
        baseline="fixture-off",
        suite="fixture",
    ),
)
LINKED = Variant(
    "ours-veth", "ours", ("--ns-isolate", "--ns-jobs", "1", "--ns-net", "veth"), baseline="ours-1"
)
"""Needs CAP_NET_ADMIN; left out where the host doesn't give it."""
RATIOS: tuple[tuple[str, str, float | None], ...] = (
    ("ours-1", "forked", 1.0),
    ("ours-2", "forked", 0.7),
    ("ours-1", "floor", 1.5),
    ("ours-2", "floor-pair", None),
    ("floor-pair", "forked", None),
)
"""With what is aimed at. No test can cost less than the floor, nor with two cores than the pair:
forks that run at once get in each other's way in the kernel, on some machines more than on others.
"""
IDLE_TARGET_MS = 5.0
LIMITS_TARGET_MS = 0.5
TOPOLOGY_TARGET_MS = 15.0
VETH_TARGET_MS = 3.0
FILES_TARGETS_MS = {"ours-readonly": 0.5, "ours-overlay": 2.5, "ours-rootfs": 3.0}
"""Beyond ours-1, the plain sandbox."""
MODULES, MANY_MODULES, TESTS_PER_MODULE, SCOPE_TARGET = 10, 100, 100, 1.15
"""The suites for ``scope="module"``, and what they may take, as a ratio to plain pytest."""
FIXTURE_SECONDS, FIXTURE_TESTS, SNAPSHOT_TARGET = 2, 50, 1.3
"""The module for ``snapshot="module"``: what its fixture takes, how many tests use it, and what
each of them may cost, as a ratio to a trivial isolated test."""


@dataclass(frozen=True)
class Sample:
    """Seconds that one pytest process took: on the wall, and of CPU with all that it waited for."""

    wall: float
    cpu: float


class Samples:
    """All samples of a benchmark, by variant and round."""

    def __init__(self) -> None:
        self._rounds: dict[str, list[Sample]] = {}

    def add(self, variant: Variant, sample: Sample) -> None:
        """Keep the sample of the round that is under way."""
        self._rounds.setdefault(variant.name, []).append(sample)

    def extra(self, variant: Variant, what: str) -> list[float]:
        """Seconds beyond the variant's baseline, round by round; of copies, for each of them."""
        pairs = zip(self._rounds[variant.name], self._rounds[variant.baseline], strict=True)
        # Of time on the wall the baseline's passes once for all copies.
        bases = variant.copies if what == "cpu" else 1
        return [
            (getattr(sample, what) - bases * getattr(base, what)) / variant.copies
            for sample, base in pairs
        ]

    def seconds(self, variant: Variant, what: str) -> list[float]:
        """Seconds of the whole process, round by round."""
        return [getattr(sample, what) for sample in self._rounds[variant.name]]


def main() -> int:
    """Measure, print the tables, and report success whatever they say."""
    options = parse_arguments()
    with workdir(options.workdir) as path:
        variants = [
            replace(
                variant,
                arguments=tuple(
                    word.replace("ROOTFS", str(options.rootfs)) for word in variant.arguments
                ),
            )
            for variant in ((*VARIANTS, LINKED) if can_link() else VARIANTS)
            if variant.environment not in options.skip
            and (options.rootfs or variant.name != "ours-rootfs")
            and (not options.only or variant.name in {*options.only, "ours-off", "ours-1"})
        ]
        environments = {variant.environment for variant in variants}
        pythons = {name: prepare(path / name, PACKAGES[name]) for name in sorted(environments)}
        suite = write_suite(path / f"suite-{options.tests}", options.tests)
        suites = {
            "trivial": (suite, options.tests),
            "modules": (
                write_suite(path / "suite-modules", MODULES * TESTS_PER_MODULE, TESTS_PER_MODULE),
                MODULES * TESTS_PER_MODULE,
            ),
            "many modules": (
                write_suite(path / "suite-many", MANY_MODULES * TESTS_PER_MODULE, TESTS_PER_MODULE),
                MANY_MODULES * TESTS_PER_MODULE,
            ),
            "short": (write_suite(path / "suite-short", FIXTURE_TESTS), FIXTURE_TESTS),
            "fixture": (write_fixture_suite(path / "suite-fixture"), FIXTURE_TESTS),
        }
        one_test = write_suite(path / "suite-1", 1)
        idle = [variant for variant in variants if variant.name in {"ours-off", "ours-idle"}]

        samples, start = Samples(), Samples()
        for number in range(options.rounds + 1):
            warming_up = number == 0
            for variant in rotated(variants, number):
                sample = measure(variant, pythons[variant.environment], *suites[variant.suite])
                if not warming_up:
                    samples.add(variant, sample)
            for repeat in range(START_REPEATS if idle else 0):
                for variant in rotated(idle, repeat):
                    sample = measure(variant, pythons[variant.environment], one_test, 1)
                    if not warming_up:
                        start.add(variant, sample)
            print(f"round {number} of {options.rounds} done", file=sys.stderr, flush=True)

        print(f"{options.tests} trivial tests, medians of {options.rounds} rounds, ", end="")
        print(f"{PYTEST}, Python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} CPUs")
        for what, title in (("wall", "wall clock"), ("cpu", "CPU time, user + system")):
            print_costs(samples, variants, suites, what, title)
        print_ratios(samples, variants)
        print_idle(samples, start, variants)
        for name, title, target in (
            ("ours-limits", "memory= and cpus=, against ours-1", LIMITS_TARGET_MS),
            ("ours-topology", 'net="a b c", against ours-1', TOPOLOGY_TARGET_MS),
            ("ours-veth", 'net="veth", against ours-1', VETH_TARGET_MS),
        ):
            print_beyond(samples, variants, options.tests, (name, title, target))
        for name, target in FILES_TARGETS_MS.items():
            print_beyond(
                samples, variants, options.tests, (name, f"{name}, against ours-1", target)
            )
        print_shared(samples, variants, options.tests)
    return 0


def can_link() -> bool:
    """Whether this user may link sandboxes to the host; says so if not."""
    status = Path("/proc/self/status").read_text("ascii")
    effective = int(re.search(r"CapEff:\s+(\w+)", status)[1], 16)  # type: ignore[index]
    if not effective >> 12 & 1:  # CAP_NET_ADMIN
        print("ours-veth is left out: it needs CAP_NET_ADMIN", file=sys.stderr)
        return False
    return True


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--tests", type=int, default=500, help="tests in the suite (default 500)")
    parser.add_argument("--workdir", type=Path, help="directory to keep the environments in")
    parser.add_argument(
        "--rootfs", type=Path, help="a system, as made by mmdebstrap, for the variant ours-rootfs"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[variant.name for variant in VARIANTS],
        help="this variant (may be given twice) and what it is held against, no others",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=sorted(PACKAGES),
        help="leave out the variants of this environment (may be given twice)",
    )
    options = parser.parse_args()
    if options.rounds < 1 or options.tests < 1:
        parser.error("--rounds and --tests have to be 1 or more")
    return options


@contextmanager
def workdir(path: Path | None) -> Iterator[Path]:
    """Give the directory, made if need be, or a temporary one that goes away."""
    if path is None:
        with tempfile.TemporaryDirectory(prefix="nsisolate-bench-") as temporary:
            yield Path(temporary)
    else:
        path.mkdir(parents=True, exist_ok=True)
        yield path.resolve()


def prepare(path: Path, packages: Sequence[str]) -> Path:
    """Make the environment, or bring the checkout in it up to date, and return its Python."""
    python = path / "bin" / "python"
    pip = (str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    subprocess.run([*pip, *packages], check=True)
    if str(PROJECT) in packages:  # the same version number says nothing about a checkout
        subprocess.run([*pip, "--force-reinstall", "--no-deps", str(PROJECT)], check=True)
    return python


def write_suite(path: Path, tests: int, per_file: int = TESTS_PER_FILE) -> Path:
    """Write a suite of trivial tests, a root directory of its own."""
    path.mkdir(exist_ok=True)
    (path / "pytest.ini").write_text("[pytest]\n")
    for first in range(0, tests, per_file):
        numbers = range(first, min(first + per_file, tests))
        body = "\n\n".join(f"def test_{number}():\n    assert True\n" for number in numbers)
        (path / f"test_{first:05}.py").write_text(body)
    return path


def write_fixture_suite(path: Path) -> Path:
    """Write a module whose tests share a fixture that takes its time."""
    path.mkdir(exist_ok=True)
    (path / "pytest.ini").write_text("[pytest]\n")
    fixture = f"""import time

import pytest


@pytest.fixture(scope="module")
def made():
    time.sleep({FIXTURE_SECONDS})


"""
    numbers = range(FIXTURE_TESTS)
    body = "\n\n".join(f"def test_{number}(made):\n    assert True\n" for number in numbers)
    (path / "test_fixture.py").write_text(fixture + body)
    return path


def rotated(variants: Sequence[Variant], by: int) -> Iterator[Variant]:
    """Yield all variants, beginning at another one each time, so that none is always first."""
    for index in range(len(variants)):
        yield variants[(index + by) % len(variants)]


def clean_environment() -> dict[str, str]:
    """The environment without what would change a run, and with the plugins of this directory."""
    dropped = ("PYTEST_", "PYTHON", "COVERAGE_", "NSISOLATE_", "VIRTUAL_ENV")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PYTHONPATH": str(BENCH)}


def measure(variant: Variant, python: Path, suite: Path, tests: int) -> Sample:
    """Run the suite once; exit with the run's output unless every test passed."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *variant.arguments]
    environment = clean_environment()
    cpu = 0.0
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(variant.copies)]
        begin = time.perf_counter()
        processes = [
            subprocess.Popen(
                command, cwd=suite, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            for output in outputs
        ]
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
        wall = time.perf_counter() - begin
        for process, output in zip(processes, outputs, strict=True):
            output.seek(0)
            text = output.read().decode(errors="replace")
            if process.returncode != 0 or f"{tests} passed" not in text:
                ended = f"{' '.join(command)} ended with {process.returncode}"
                sys.exit(f"{variant.name}: {ended}:\n{text}")
    return Sample(wall=wall, cpu=cpu)


def print_costs(
    samples: Samples,
    variants: Sequence[Variant],
    suites: Mapping[str, tuple[Path, int]],
    what: str,
    title: str,
) -> None:
    """Print what each variant takes, and its milliseconds per test beyond its baseline."""
    print(f"\n{title:<24}{'whole run':>12}{'per test beyond plain':>24}{'(lowest-highest)':>20}")
    for variant in variants:
        whole = statistics.median(samples.seconds(variant, what))
        line = f"{variant.name:<24}{whole:>10.3f} s"
        if variant.baseline:
            tests = suites[variant.suite][1]
            extra = [seconds * 1000 / tests for seconds in samples.extra(variant, what)]
            line += f"{statistics.median(extra):>21.3f} ms{min(extra):>13.3f}-{max(extra):.3f}"
        print(line)


def print_ratios(samples: Samples, variants: Sequence[Variant]) -> None:
    """Print the ratios that the project promises, wall clock and CPU time."""
    by_name = {variant.name: variant for variant in variants}
    print(f"\n{'ratio of costs per test':<24}{'wall clock':>12}{'target':>12}{'CPU time':>12}")
    for name, other, target in RATIOS:
        aim = "" if target is None else f"<= {target}"
        if name not in by_name or other not in by_name:
            print(f"{name + ' / ' + other:<24}{'skipped':>12}{aim:>12}")
            continue
        wall, cpu = (
            statistics.median(samples.extra(by_name[name], what))
            / statistics.median(samples.extra(by_name[other], what))
            for what in ("wall", "cpu")
        )
        print(f"{name + ' / ' + other:<24}{wall:>12.2f}{aim:>12}{cpu:>12.2f}")


def print_idle(samples: Samples, start: Samples, variants: Sequence[Variant]) -> None:
    """Print what the installed plugin adds to a session without any isolated test."""
    for variant in variants:
        if variant.name == "ours-idle":
            print("\nplugin installed, no isolated test, against -p no:nsisolate:")
            for title, kept in (("a session of one test", start), ("the whole suite", samples)):
                extra = [seconds * 1000 for seconds in kept.extra(variant, "wall")]
                print(f"{title:<24}{statistics.median(extra):>9.1f} ms", end="")
                print(f"{'<= ' + str(IDLE_TARGET_MS) + ' ms':>12}")


def print_beyond(
    samples: Samples, variants: Sequence[Variant], tests: int, row: tuple[str, str, float]
) -> None:
    """Print what a variant adds to each test beyond ours-1: a sandbox with its loopback alone."""
    name, title, target = row
    by_name = {variant.name: variant for variant in variants}
    if name in by_name:
        extra = samples.extra(by_name[name], "wall")
        mine = statistics.median(extra) * 1000 / tests
        base = statistics.median(samples.extra(by_name["ours-1"], "wall")) * 1000 / tests
        print(f"\n{title:<36}{mine:>6.3f} ms a test", end="")
        print(f"{'<= ' + str(target) + ' ms':>12}{(base + mine) / base:>8.2f} x")


def print_shared(samples: Samples, variants: Sequence[Variant], tests: int) -> None:
    """Print what tests cost that share a process, and those that are forks of a snapshot."""
    by_name = {variant.name: variant for variant in variants}
    if "ours-short" not in by_name:
        return
    for modules, suffix in ((MODULES, ""), (MANY_MODULES, "-many")):
        off = "many-off" if suffix else "modules-off"
        plain = statistics.median(samples.seconds(by_name[off], "wall"))
        print(f"\nscope=module, {modules} modules of {TESTS_PER_MODULE} tests, whole run / plain")
        for jobs, end in ((1, ""), (2, "-2")):
            name = f"ours-scope{suffix}{end}"
            ratio = statistics.median(samples.seconds(by_name[name], "wall")) / plain
            print(f"  --ns-jobs {jobs}{ratio:>46.2f}{'<= ' + str(SCOPE_TARGET):>12}")
    extra = statistics.median(samples.extra(by_name["ours-snapshot"], "wall")) / FIXTURE_TESTS
    trivial = statistics.median(samples.extra(by_name["ours-1"], "wall")) / tests
    short = statistics.median(samples.extra(by_name["ours-short"], "wall")) / FIXTURE_TESTS
    print(f"\nsnapshot=module, {FIXTURE_TESTS} tests, a test beyond plain")
    for title, cost in (
        (f"ours-1, {tests} tests and one start of a session", trivial),
        (f"ours-short, {FIXTURE_TESTS} tests and one start", short),
    ):
        print(f"  / {title:<44}{extra / cost:>10.2f}{'<= ' + str(SNAPSHOT_TARGET):>12}")
    whole = statistics.median(samples.seconds(by_name["ours-snapshot"], "wall"))
    bound = FIXTURE_SECONDS + FIXTURE_TESTS * trivial * SNAPSHOT_TARGET
    print(f"  its whole run, start of pytest included{whole:>17.2f} s", end="")
    print(f"{f'<= {bound:.2f} s and the start':>28}")


if __name__ == "__main__":
    sys.exit(main())
