"""The keys of the marker: which values are taken, and how layers merge."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsisolate.spec.keys import Layer, SpecError
from pytest_nsisolate.spec.merging import merge
from pytest_nsisolate.spec.parsing import RULES, parse_value
from pytest_nsisolate.spec.spec import Spec

GOOD: list[tuple[str, object, object]] = [
    ("net", "loopback", "loopback"),
    ("net", "host", "host"),
    ("tmpfs", "256M", 256 << 20),
    ("tmpfs", " 2g ", 2 << 30),
    ("tmpfs", "2048k", 2 << 20),
    ("tmpfs", 1 << 20, 1 << 20),
    ("tmpfs", str(1 << 20), 1 << 20),
    ("timeout", 1, 1.0),
    ("timeout", 0.5, 0.5),
    ("timeout", "1.5", 1.5),
    ("timeout", None, None),
    ("timeout", "None", None),
    ("user", "root", "root"),
    ("hostname", "db1.example.org", "db1.example.org"),
    ("hostname", "x" * 63, "x" * 63),
    ("share", ("uts", "ipc", "ipc"), ("ipc", "uts")),
    ("share", "net, ipc", ("ipc", "net")),
    ("share", (), ()),
    ("env", "clean", "clean"),
    ("scope", "function", "function"),
    ("scope", "module", "module"),
    ("snapshot", "session", "session"),
    ("snapshot", "None", None),
    ("env", {"A": "1"}, {"A": "1"}),
    ("env", "A=1 B=x=y", {"A": "1", "B": "x=y"}),
]
BAD: list[tuple[str, object]] = [
    *(("net", value) for value in ("wifi", "", 1, None)),
    *(("tmpfs", value) for value in ("lots", "", "M", "5KM", "-1M", "1.5M", 1.5, True, 0, "512K")),
    ("tmpfs", "٣M"),
    *(("timeout", value) for value in (0, -1, True, "soon", "nan", float("inf"), [1], 10**400)),
    *(("user", value) for value in ("bob", 0, None)),
    *(("scope", value) for value in ("session", "", None, 1)),
    *(("snapshot", value) for value in ("function", "", True, 1)),
    *(("hostname", value) for value in ("", "a b", "-a", "a" * 65, "a..b", "a/../b", "ä", 7)),
    *(("share", value) for value in ("soul", ("ipc", "user"), 7, ["pid"], [7], {"ipc": 1})),
    *(("env", value) for value in ("dirty", "", "=x", {"A": 1}, {"": "x"}, {"A=": "x"})),
    *(("env", value) for value in ({"A": "\0"}, {"\0": "x"}, ["A=1"], None)),
]


@pytest.mark.parametrize(("key", "value", "parsed"), GOOD)
def test_good_value(key: str, value: object, parsed: object) -> None:
    assert parse_value(key, value, "here") == parsed


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_value(key: str, value: object) -> None:
    """The error names where it stands, the key, the value and what is allowed."""
    with pytest.raises(SpecError) as caught:
        parse_value(key, value, "in this place")
    assert str(caught.value).startswith(f"in this place: {key}={value!r}")
    assert RULES[key].allowed in str(caught.value)


def test_unknown_key() -> None:
    with pytest.raises(SpecError, match=r"here: unknown key 'memroy'; known are .*tmpfs"):
        parse_value("memroy", "1M", "here")


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


def test_shared_namespaces() -> None:
    assert Spec(net="host").shared == ("net",)
    assert Spec(net="host", share=("net",)).shared == ("net",)
    assert Spec(share=("ipc",)).shared == ("ipc",)


def test_environment() -> None:
    current = {"PATH": "/bin", "LC_ALL": "C", "SECRET": "x"}
    assert Spec().environment(current) == current
    assert Spec(env="clean").environment(current) == {"PATH": "/bin", "LC_ALL": "C"}
    assert Spec(env={"SECRET": "y"}).environment(current) == {**current, "SECRET": "y"}
