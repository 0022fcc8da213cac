"""The values of the marker's keys: which ones are taken, and what refuses the others."""

from __future__ import annotations

import pytest

from pytest_nsisolate.spec.keys import SpecError
from pytest_nsisolate.spec.parsing import RULES, parse_value, written

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


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("tmpfs", 256 << 20, "tmpfs='256M'"),
        ("memory", (1 << 20) + 1, "memory=1048577"),
        ("memory", None, "memory=None"),
        ("timeout", 1.5, "timeout=1.5"),
        ("forward", ((5432, 5432), (8080, 80)), "forward=[5432, '8080:80']"),
        ("env", "clean", "env='clean'"),
        ("env", {"TOKEN": "secret"}, "env={'TOKEN': ...}"),
        ("hide", ("/etc", "/srv"), "hide=['/etc', '/srv']"),
        ("io", {"rbps": 4096}, "io={'rbps': 4096}"),
    ],
)
def test_written(key: str, value: object, text: str) -> None:
    """As in a marker; values of environment variables stay secret."""
    assert written(key, value) == text
