"""Limits as values: which controller each takes, and what is written for it in v1 and v2."""

from __future__ import annotations

import pytest

from pytest_nsisolate.cgroups import v1 as cgroupv1
from pytest_nsisolate.cgroups import v2 as cgroupv2
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.spec.bounds import parse_cpus
from pytest_nsisolate.spec.limits import LimitError, Limits, Setting, quota

ALL = frozenset({"memory", "cpu", "pids", "cpuset", "io", "devices"})


def written(found: list[Setting]) -> list[tuple[str, str]]:
    return [one.choices[0] for one in found]


@pytest.mark.parametrize(
    ("limits", "controllers"),
    [
        (Limits(), set()),
        (Limits(memory=1 << 26), {"memory"}),
        (Limits(cpus=0.5, cpu_weight=300), {"cpu"}),
        (Limits(io={"rbps": 1}, io_weight=5), {"io"}),
        (Limits(pids=3, cpuset="0", devices=()), {"pids", "cpuset", "devices"}),
    ],
)
def test_controllers(limits: Limits, controllers: set[str]) -> None:
    assert limits.controllers() == controllers
    assert bool(limits) == bool(controllers)


@pytest.mark.parametrize(
    ("limits", "v1", "v2"),
    [
        (
            Limits(memory=1 << 26),
            [("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "67108864")],
            [("memory.max", "67108864"), ("memory.swap.max", "0"), ("memory.oom.group", "1")],
        ),
        (Limits(cpus=0.25), [("cpu.cfs_quota_us", "25000")], [("cpu.max", "25000 100000")]),
        (
            Limits(cpus=0.004),
            [("cpu.cfs_period_us", "1000000"), ("cpu.cfs_quota_us", "4000")],
            [("cpu.max", "4000 1000000")],
        ),
        (Limits(cpu_weight=300), [("cpu.shares", "3072")], [("cpu.weight", "300")]),
        (Limits(pids=20), [("pids.max", "20")], [("pids.max", "20")]),
        (Limits(cpuset="0-1"), [("cpuset.cpus", "0-1")], [("cpuset.cpus", "0-1")]),
        (
            Limits(io={"rbps": 5, "wiops": 7}),
            [
                ("blkio.throttle.read_bps_device", "8:0 5"),
                ("blkio.throttle.write_iops_device", "8:0 7"),
            ],
            [("io.max", "8:0 rbps=5 wiops=7")],
        ),
        (
            Limits(io_weight=10_000),
            [("blkio.bfq.weight", "1000")],
            [("io.weight", "default 10000"), ("io.bfq.weight", "default 1000")],
        ),
        (
            Limits(devices=("/dev/null",)),
            [("devices.deny", "a"), ("devices.allow", "c 1:3 rw")],
            [],
        ),
    ],
    ids=lambda value: next(iter(value.controllers())) if isinstance(value, Limits) else "",
)
def test_settings(limits: Limits, v1: list[tuple[str, str]], v2: list[tuple[str, str]]) -> None:
    assert written(cgroupv1.settings(limits, ALL, "8:0", ["c 1:3"])) == v1
    assert written(cgroupv2.settings(limits, ALL, "8:0", ["c 1:3"])) == v2
    # Each part of a group writes what its own controllers are for.
    assert cgroupv1.settings(limits, (), "8:0", ()) == []
    assert cgroupv2.settings(limits, (), "8:0", ()) == []


@pytest.mark.parametrize(
    ("weight", "shares", "bfq"),
    [(1, 10, 1), (100, 1024, 100), (300, 3072, 118), (10_000, 102400, 1000)],
)
def test_weights(weight: int, shares: int, bfq: int) -> None:
    assert (cgroupv1.shares(weight), cgroupv1.bfq_weight(weight)) == (shares, bfq)


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [(2, (200_000, 100_000)), (0.01, (1000, 100_000)), (0.001, (1000, 1_000_000))],
)
def test_quota(cpus: float, expected: tuple[int, int]) -> None:
    assert quota(cpus) == expected


def test_quota_below_what_the_kernel_takes() -> None:
    with pytest.raises(ValueError, match=r"0\.0004"):
        quota(0.0004)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", {0}), ("0-1,3", {0, 1, 3}), (" 2 , 4-5\n", {2, 4, 5})]
)
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-999999999", "²"])
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(ValueError, match="no list of CPUs"):
        parse_cpus(text)


def test_a_limit_error_is_a_fact() -> None:
    error = LimitError("io", "v2", 2, "/x")
    assert (error.stage, error.controller, error.backend) == ("limit io by cgroup v2", "io", "v2")
    assert Usage().sampled == frozenset()
