"""How the keys of several places become one spec, and which keys exclude each other."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsisolate.spec.keys import Layer, SpecError
from pytest_nsisolate.spec.merging import merge
from pytest_nsisolate.spec.spec import Spec


def test_merging() -> None:
    """Key by key the first layer wins; what no layer has is the default."""
    first = Layer("first", {"hostname": "a"})
    second = Layer("second", {"hostname": "b", "timeout": 3.0})
    assert merge([first, second]) == Spec(hostname="a", timeout=3.0)
    assert merge([]) == Spec()


@pytest.mark.parametrize(
    "values",
    [{"net": "loopback", "share": ("net",)}, {"hostname": "db", "share": ("ipc", "uts")}],
    ids=str,
)
def test_contradiction(values: dict[str, Any]) -> None:
    """Keys of one place must not contradict each other; a nearer place may override."""
    with pytest.raises(SpecError, match=r"here: .* contradicts share="):
        merge([Layer("here", values)])
    share = values.pop("share")
    merge([Layer("near", {"share": share}), Layer("far", values)])


def test_nearer_places_win_over_shared_namespaces() -> None:
    """Whichever of the two stands nearer leaves nothing of the other that would be ignored."""
    share = Layer("far", {"share": ("ipc", "net", "uts")})
    assert merge([Layer("near", {"net": "veth"}), share]).shared == ("ipc", "uts")
    assert merge([Layer("near", {"hostname": "db"}), share]).shared == ("ipc", "net")
    spec = merge([Layer("near", {"share": ("uts",)}), Layer("far", {"hostname": "db"})])
    assert spec == Spec(share=("uts",))
    # Markers of a class and of its function have one name.
    spec = merge([Layer("a test", {"hostname": "db"}), Layer("a test", {"share": ("uts",)})])
    assert spec == Spec(hostname="db")


def test_a_network_that_is_said_nearer() -> None:
    """What needs another one is left out; said nearer than the network it is refused."""
    for key, value in (("pcap", "failed"), ("nat", True), ("forward", ((80, 80),))):
        wish = Layer("wish", {key: value})
        for network in (Layer("network", {"net": "host"}), Layer("network", {"share": ("net",)})):
            assert getattr(merge([network, wish]), key) == getattr(Spec(), key)
            with pytest.raises(SpecError, match=rf"^wish: {key}=.* needs .*; allowed: {key} with"):
                merge([wish, network])
    assert merge([Layer("wish", {"pcap": "failed"})]).pcap == "failed"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"propagation": "slave", "fs": "overlay"},
            "contradicts fs='overlay' \\(B\\): the sandbox",
        ),
        (
            {"propagation": "slave", "rootfs": "/srv"},
            "contradicts rootfs='/srv' \\(B\\): the sandbox",
        ),
        ({"net": "a b", "share": ("net",)}, "contradicts share=\\('net',\\) \\(B\\): a topology"),
        (
            {"snapshot": "class", "clock": 5.0},
            "contradicts clock=5.0 \\(B\\): the tests of a snapshot",
        ),
        ({"net": "a b", "hostname": "B"}, "names a host 'b', and so is the sandbox"),
    ],
    ids=str,
)
def test_contradiction_wherever_it_stands(values: dict[str, Any], says: str) -> None:
    """The error names both places."""
    (one, first), (other, second) = values.items()
    layers = [Layer("A", {one: first}), Layer("B", {other: second})]
    for order in (layers, layers[::-1]):
        with pytest.raises(SpecError, match=rf"^A: {one}='.*' {says}"):
            merge(order)


def test_a_writable_root_that_the_host_shares_mounts_with() -> None:
    assert merge([Layer("A", {"propagation": "slave", "fs": "readonly"})]).fs == "readonly"


def test_the_farther_one_of_scope_and_snapshot_is_left_out() -> None:
    scope, snapshot = {"scope": "class"}, {"snapshot": "module"}
    assert merge([Layer("near", scope), Layer("far", snapshot)]) == Spec(scope="class")
    assert merge([Layer("near", snapshot), Layer("far", scope)]) == Spec(snapshot="module")
    with pytest.raises(SpecError, match=r"^here: scope='class' contradicts snapshot='module': "):
        merge([Layer("here", {**scope, **snapshot})])
    assert merge([Layer("here", {"scope": "function", **snapshot})]) == Spec(snapshot="module")


def test_a_profile_is_farther_than_every_place() -> None:
    """Its keys are defaults; an error names it as their place."""
    spec = merge([Layer("A", {"fs": "host"}), Layer("B", {"profile": "hermetic"})])
    assert spec == Spec(profile="hermetic", fs="host", env="clean")
    with pytest.raises(SpecError, match=r"contradicts fs='overlay' \(profile='hermetic'\): "):
        merge([Layer("A", {"profile": "hermetic", "propagation": "slave"})])
