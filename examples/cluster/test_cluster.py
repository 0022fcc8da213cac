"""A cluster of three in one test: what happens when the network breaks, heals, or is slow."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from counter import Node

NAMES = ["a", "b", "c"]
SOON = 10
"""Seconds in which what must happen happens, also on a machine that is very busy."""

pytestmark = pytest.mark.isolated(net="a b c", pcap="failed", timeout=60)


@pytest.fixture
def cluster(sandbox):
    """Start the three nodes, each on its host: a socket stays in the host that it was made in."""
    with ExitStack() as stack:
        nodes = {}
        for name in NAMES:
            with sandbox.net[name]:
                nodes[name] = Node(name, [other for other in NAMES if other != name])
            stack.callback(nodes[name].close)
        yield nodes


def agree(cluster, value, names=NAMES):
    """Wait until all these nodes have the value."""
    for name in names:
        node = cluster[name]
        with node.changed:
            assert node.changed.wait_for(lambda node=node: node.value == value, SOON), (
                f"{name} has {node.value}, not {value}"
            )


def test_counts_come_together(cluster):
    for node in cluster.values():
        for _ in range(5):
            node.increment()
    agree(cluster, 15)


def test_partition_and_heal(sandbox, cluster):
    with sandbox.net.cut("a", "b c"):
        assert not cluster["a"].increment(safely_within=0.2)  # alone, it can't be sure
        assert cluster["b"].increment(safely_within=SOON)  # two of three can
        cluster["c"].increment()
        agree(cluster, 2, ["b", "c"])
        assert cluster["a"].value == 1
    agree(cluster, 3)


def test_two_partitions(sandbox, cluster):
    around_a = sandbox.net.cut("a")
    sandbox.net.cut("b", "c")
    for node in cluster.values():
        node.increment()
    assert not cluster["b"].increment(safely_within=0.2)
    assert [node.value for node in cluster.values()] == [1, 2, 1]
    around_a.heal()
    agree(cluster, 4)  # b and c still don't hear each other, but a passes it on


def test_slow_link(sandbox, cluster):
    # 16 kbit/s: a few messages a second, where fifty of them are sent. A rate needs no netem.
    with sandbox.net.link("a", "b").shape(rate="16kbit"), sandbox.net.cut("c"):
        assert cluster["a"].increment(safely_within=SOON)
    assert cluster["c"].increment(safely_within=SOON)
    agree(cluster, 2)


def test_one_cable_is_pulled(sandbox, cluster):
    with sandbox.net.link("c").down():
        assert cluster["a"].increment(safely_within=SOON)
        assert not cluster["c"].increment(safely_within=0.2)
    agree(cluster, 2)


def test_programs(sandbox):
    """The same with programs: each runs in its host, and knows the others by name."""
    program = [sys.executable, str(Path(__file__).with_name("counter.py"))]
    with ExitStack() as stack:
        nodes = {}
        for name in NAMES:
            nodes[name] = stack.enter_context(
                sandbox.net[name].popen(
                    [*program, name, *(other for other in NAMES if other != name)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(nodes[name].stdin.close)
        for node in nodes.values():
            print("add", file=node.stdin, flush=True)
        end = time.monotonic() + SOON
        for name, node in nodes.items():
            while int(node.stdout.readline()) < 3:
                assert time.monotonic() < end, name
