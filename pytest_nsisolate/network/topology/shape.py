"""How a link is shaped, as a value: what users write, and in which units it ends up."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_TIMES = {"us": 1, "ms": 1000, "s": 1_000_000}
_RATES = {"bit": 1, "kbit": 1000, "mbit": 1000_000, "gbit": 1000_000_000}
#: What netem's 32 bits of ticks of 64 ns hold.
MAX_DELAY = 270_000_000
#: What its 32 bits of bytes a second hold, in bits a second.
MAX_RATE = 32_000_000_000
MIN_RATE = 8_000


class Shape(NamedTuple):
    """What happens to packets, in each direction.

    Attributes:
        delay, jitter: microseconds.
        loss, reorder, duplicate: percent.
        rate: bytes a second, 0 for no limit.
    """

    delay: int = 0
    jitter: int = 0
    loss: float = 0
    rate: int = 0
    reorder: float = 0
    duplicate: float = 0

    @property
    def rate_alone(self) -> bool:
        """Whether a plain token bucket does it."""
        return bool(self.rate) and self == Shape(rate=self.rate)


def read(
    *,
    delay: object = 0,
    jitter: object = 0,
    loss: object = 0,
    rate: object = None,
    reorder: object = 0,
    duplicate: object = 0,
) -> Shape:
    """Check and convert.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    shape = Shape(
        _time("delay", delay),
        _time("jitter", jitter),
        _percent("loss", loss),
        _rate(rate),
        _percent("reorder", reorder),
        _percent("duplicate", duplicate),
    )
    for name in ("jitter", "reorder"):
        if getattr(shape, name) and not shape.delay:
            raise ValueError(f"{name} needs a delay that it varies")
    if shape.jitter > shape.delay:
        raise ValueError(f"jitter={jitter!r} is more than delay={delay!r}")
    return shape


def _time(name: str, value: object) -> int:
    found = None
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s)", value.strip())
        if match:
            found = float(match[1]) * _TIMES[match[2]]
    elif not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
        found = value * 1_000_000
    if found is None or not 0 <= found <= MAX_DELAY:
        raise ValueError(
            f'{name}={value!r} is not allowed; allowed: a string such as "50ms", "1.5s" or '
            f'"200us", or a number of seconds, from 0 to {MAX_DELAY // 1_000_000} s'
        )
    return round(found)


def _percent(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100:
        return float(value)
    raise ValueError(f"{name}={value!r} is not allowed; allowed: percent, from 0 to 100")


def _rate(value: object) -> int:
    if value is None:
        return 0
    found = None
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?bit)", value.strip().lower())
        if match:
            found = float(match[1]) * _RATES[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        found = value
    if found is None or not MIN_RATE <= found < MAX_RATE:
        raise ValueError(
            f'rate={value!r} is not allowed; allowed: a string such as "10mbit", "500kbit" or '
            f'"1gbit", or a number of bits a second, from {MIN_RATE} to below {MAX_RATE}'
        )
    return round(found / 8)
