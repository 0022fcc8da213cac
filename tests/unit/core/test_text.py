"""Sizes and lengths of time as people read them."""

from __future__ import annotations

import pytest

from pytest_nsisolate.core.text import (
    age,
    duration,
    mebibytes,
    seconds_in_column,
    size,
    size_in_column,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (134533120, "128.3 MiB"),
        (1 << 40, "1024.0 GiB"),
    ],
)
def test_sizes_in_a_column(count: int | None, text: str) -> None:
    assert size_in_column(count) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "?"), (0, "0.0 ms"), (0.0123, "12.3 ms"), (0.0999, "0.10 s")]
)
def test_seconds_in_a_column(number: float | None, text: str) -> None:
    assert seconds_in_column(number) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1000, "1000 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (3 << 40, "3 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_mebibytes() -> None:
    assert [mebibytes(1 << 19), mebibytes(2 << 30)] == ["0.5 MiB", "2048 MiB"]


@pytest.mark.parametrize(
    ("seconds", "exact", "rough"),
    [
        (0.5, "0.5 s", "0 s"),
        (59, "59 s", "59 s"),
        (90, "90 s", "1 min"),
        (120, "2 min", "2 min"),
        (3600, "1 h", "1 h 00"),
        (7500, "125 min", "2 h 05"),
    ],
)
def test_lengths_of_time(seconds: float, exact: str, rough: str) -> None:
    assert [duration(seconds), age(seconds)] == [exact, rough]
