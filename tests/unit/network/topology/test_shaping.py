"""What links can be shaped by: units, and bad values."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsisolate.network.topology.shaping import Shape, read


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({}, Shape()),
        ({"delay": "50ms"}, Shape(delay=50_000)),
        ({"delay": 0.05, "jitter": "1.5ms"}, Shape(delay=50_000, jitter=1500)),
        ({"delay": "200us"}, Shape(delay=200)),
        ({"delay": "2 s"}, Shape(delay=2_000_000)),
        ({"rate": "10mbit"}, Shape(rate=1_250_000)),
        ({"rate": "1.5kbit".replace("1.5", "64.8")}, Shape(rate=8100)),
        ({"rate": 8_000_000}, Shape(rate=1_000_000)),
        ({"loss": 1, "duplicate": 0.5}, Shape(loss=1, duplicate=0.5)),
        ({"delay": "1ms", "reorder": 25}, Shape(delay=1000, reorder=25)),
    ],
)
def test_units(values: dict[str, Any], shape: Shape) -> None:
    """Microseconds, bytes a second, percent."""
    assert read(**values) == shape


def test_a_rate_alone_is_known() -> None:
    """It needs no netem."""
    assert read(rate="1mbit").rate_alone
    assert not read(rate="1mbit", delay="1ms").rate_alone
    assert not read().rate_alone


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"delay": "50"}, "delay='50'"),
        ({"delay": "50 minutes"}, "50ms"),
        ({"delay": -1}, "delay=-1"),
        ({"delay": float("nan")}, "delay=nan"),
        ({"delay": "271s"}, "270 s"),
        ({"delay": True}, "delay=True"),
        ({"jitter": "1ms"}, "jitter needs a delay"),
        ({"delay": "1ms", "jitter": "2ms"}, "more than"),
        ({"reorder": 5}, "reorder needs a delay"),
        ({"loss": 101}, "loss=101"),
        ({"loss": "1%"}, "percent"),
        ({"duplicate": -0.1}, "duplicate=-0.1"),
        ({"rate": "fast"}, "10mbit"),
        ({"rate": 1}, "rate=1"),
        ({"rate": "10mb"}, "rate='10mb'"),
        ({"rate": "32gbit"}, "32gbit"),
    ],
)
def test_bad_values(values: dict[str, Any], says: str) -> None:
    """The argument, its value and what is allowed."""
    with pytest.raises(ValueError, match=r".") as caught:
        read(**values)
    assert says in str(caught.value)
