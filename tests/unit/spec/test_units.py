"""Numbers with units, as users write them, and the sentence that refuses a value."""

from __future__ import annotations

import pytest

from pytest_nsisolate.spec.keys import SpecError, not_allowed, refusal
from pytest_nsisolate.spec.units import (
    LONG_TIMES,
    RATES,
    SHORT_TIMES,
    decimal,
    quantity,
    size,
    whole,
)


@pytest.mark.parametrize(
    ("value", "count"), [(7, 7), ("7", 7), (" 2k ", 2 << 10), ("3M", 3 << 20), ("1G", 1 << 30)]
)
def test_size(value: object, count: int) -> None:
    assert size(value) == count


@pytest.mark.parametrize(
    "value", ["", "M", "5KM", "5 M", "1.5M", "-1M", "1e3", "٣M", "5T", 1.5, True, None, b"5M"]
)
def test_bad_size(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- whoever asks for it has the text
        size(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2 h", 7200), ("1d", 86400), ("1e3s", 1000)],
)
def test_long_time(text: str, seconds: float) -> None:
    assert quantity(text, LONG_TIMES) == seconds


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), ("2 s", 2.0), ("200us", 0.0002)])
def test_short_time(text: str, seconds: float) -> None:
    assert quantity(text, SHORT_TIMES, decimal) == pytest.approx(seconds, rel=1e-15)


def test_rate() -> None:
    assert quantity("1.5mbit", RATES, decimal) == 1_500_000


@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 "])
def test_bare_number(value: object) -> None:
    """It needs no unit, unless it is a string and the units don't have an empty one."""
    assert quantity(value) == 1.0
    if isinstance(value, str):
        with pytest.raises(ValueError):  # noqa: PT011 -- as above
            quantity(value, SHORT_TIMES)


@pytest.mark.parametrize("value", ["", "s", "soon", "inf", "1 week", "5ss", True, None, [1]])
def test_bad_quantity(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- as above
        quantity(value, LONG_TIMES)


@pytest.mark.parametrize("text", ["", "-1", "1.0", " 1", "٣"])
def test_whole(text: str) -> None:
    assert whole("12") == 12
    with pytest.raises(ValueError):  # noqa: PT011 -- as above
        whole(text)


@pytest.mark.parametrize("text", ["", ".5", "5.", "+5", "1e3", "1_0", "nan", "٣"])
def test_decimal(text: str) -> None:
    assert decimal(" 1.5 ") == 1.5
    with pytest.raises(ValueError):  # noqa: PT011 -- as above
        decimal(text)


def test_refusal() -> None:
    """Where, the name, the value, what is allowed, and the reason if there is one."""
    assert not_allowed("x=1", "2") == "x=1 is not allowed; allowed: 2"
    error = refusal("ini x", "x", "a", "b", "it is a")
    assert isinstance(error, SpecError)
    assert str(error) == "ini x: x='a' is not allowed: it is a; allowed: b"
