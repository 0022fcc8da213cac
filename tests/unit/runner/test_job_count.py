"""How many tests at once: the decision, and what it is made of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.cgroups.layout import Hierarchy, Layout
from pytest_nsisolate.runner import job_count
from pytest_nsisolate.runner.job_count import PER_TEST, weigh

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cpus", "memory", "workers", "largest", "jobs"),
    [
        (1, 8 * GIB, 1, None, 1),
        (8, None, 1, None, 8),
        (8, 64 * GIB, 1, None, 8),
        (8, 4 * PER_TEST, 1, None, 4),
        (8, 8 * GIB, 1, 2 * GIB, 4),
        (8, 0, 1, None, 1),
        (0.5, GIB, 1, None, 1),
        (2.7, GIB, 1, None, 2),
        (8, 64 * GIB, 4, None, 2),
        (8, 64 * GIB, 16, None, 1),
        (8, 8 * PER_TEST, 2, None, 4),
    ],
)
def test_decision(
    cpus: float, memory: int | None, workers: int, largest: int | None, jobs: int
) -> None:
    assert weigh(cpus, memory, workers, largest).jobs == jobs


def test_reason_names_what_decided() -> None:
    assert weigh(8, None).reason == "8 CPUs"
    assert weigh(1, None).reason == "1 CPU"
    assert weigh(8, 2 * GIB, 2, GIB).reason == "2048 MiB of memory for 1024 MiB each, 2 workers"


@pytest.fixture(params=[1, 2])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    """A cgroup two levels down, of either version."""
    own = tmp_path / "outer" / "inner"
    own.mkdir(parents=True)
    names = frozenset({"cpu", "memory"}) if request.param == 1 else frozenset[str]()
    return Layout((Hierarchy(request.param, str(tmp_path), str(own), names),))


def write(layout: Layout, level: str, *, v1: dict[str, str], v2: dict[str, str]) -> None:
    (place,) = layout.hierarchies
    directory = place.own if level == "inner" else os.path.dirname(place.own)
    for name, text in (v1 if place.version == 1 else v2).items():
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write(text + "\n")


def test_cpu_quota_of_a_group_above(layout: Layout) -> None:
    free = job_count.cpus(layout)
    assert free == len(os.sched_getaffinity(0))
    write(
        layout,
        "inner",
        v1={"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
        v2={"cpu.max": "max 100000"},
    )
    assert job_count.cpus(layout) == free
    write(
        layout,
        "outer",
        v1={"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "50000"},
        v2={"cpu.max": "25000 50000"},
    )
    assert job_count.cpus(layout) == 0.5


def test_memory_that_a_group_leaves(layout: Layout) -> None:
    free = job_count.memory(layout)
    assert free is not None
    write(
        layout,
        "inner",
        v1={
            "memory.limit_in_bytes": str(64 << 20),
            "memory.usage_in_bytes": str(40 << 20),
            "memory.stat": f"cache 9\ntotal_inactive_file {8 << 20}",
        },
        v2={
            "memory.max": str(64 << 20),
            "memory.current": str(40 << 20),
            "memory.stat": f"anon 9\ninactive_file {8 << 20}",
        },
    )
    assert job_count.memory(layout) == 32 << 20
    write(
        layout,
        "outer",
        v1={"memory.limit_in_bytes": "4096", "memory.usage_in_bytes": "8192"},
        v2={"memory.max": "4096", "memory.current": "8192"},
    )
    assert job_count.memory(layout) == 0


def test_this_host() -> None:
    found = job_count.choose()
    assert 1 <= found.jobs <= len(os.sched_getaffinity(0))
    assert job_count.choose(largest=1 << 50).jobs == 1
