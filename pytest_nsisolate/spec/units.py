"""Read numbers with units, as users write them: sizes, lengths of time and rates."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Number = TypeVar("_Number", int, float)

#: Units of sizes, in bytes.
SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: Units of long times, in seconds: a number without a unit is seconds.
LONG_TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: Units of short times, in seconds.
SHORT_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
#: Units of rates, in bits a second.
RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_UNITLESS = {"": 1.0}


def whole(text: str) -> int:
    """Read ASCII digits.

    Raises:
        ValueError: the text has anything else.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def decimal(text: str) -> float:
    """Read digits with or without a point between them: 1.5, but not 1e3, .5 or inf.

    Raises:
        ValueError: the text is not of that form.
    """
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text.strip()):
        raise ValueError(text)
    return float(text)


def amount(text: str, units: Mapping[str, _Number], number: Callable[[str], _Number]) -> _Number:
    """Read a number that is followed by a unit.

    Args:
        units: what each unit stands for; "" is for a number without one.
        number: reads the number.

    Raises:
        ValueError: the number is not one, or the unit is unknown.
    """
    text = text.strip()
    digits = text.rstrip(string.ascii_letters)
    unit = text[len(digits) :]
    if unit not in units:
        raise ValueError(text)
    return number(digits) * units[unit]


def size(value: object) -> int:
    """Read a size: an int of bytes, or a string such as 256M.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return amount(value.upper(), SIZES, whole)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(value)
    return value


def quantity(
    value: object,
    units: Mapping[str, float] = _UNITLESS,
    number: Callable[[str], float] = float,
) -> float:
    """Read a number, or a string of a number and a unit. A bare number is in the base unit.

    Args:
        units: those that a string may have, in the base unit.
        number: reads the number of a string.

    Raises:
        ValueError: it is neither.
        OverflowError: it is an int that no float can be.
    """
    if isinstance(value, str):
        return amount(value, units, number)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(value)
    return float(value)
