"""Shape what leaves a device: what users write, as a value and as qdiscs of the kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
from typing import Any, ClassVar, NamedTuple

from pytest_nsisolate.core.linux.netlink import NLM_F_CREATE, NLM_F_REPLACE
from pytest_nsisolate.spec.keys import not_allowed
from pytest_nsisolate.spec.units import RATES, SHORT_TIMES, decimal, quantity

from .link_messages import Operation, encode

#: What netem's 32 bits of ticks of 64 ns hold, in microseconds.
MAX_DELAY = 270_000_000
#: What its 32 bits of bytes a second hold, in bits a second.
MAX_RATE = 32_000_000_000
MIN_RATE = 8_000
# linux/rtnetlink.h, linux/pkt_sched.h
_NEWQDISC, _DELQDISC = 36, 37
_TC_ROOT = 0xFFFFFFFF
#: On the wire, at most, in bytes.
_PACKET = 1600
_TICKS = 1000 / 64  # of the packet scheduler, a microsecond (PSCHED_SHIFT is 6)


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
    try:
        found = quantity(value, SHORT_TIMES, decimal) * 1_000_000
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= MAX_DELAY:
        allowed = (
            'a string such as "50ms", "1.5s" or "200us", or a number of seconds, from 0 to '
            f"{MAX_DELAY // 1_000_000} s"
        )
        raise ValueError(not_allowed(f"{name}={value!r}", allowed))
    return round(found)


def _percent(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100:
        return float(value)
    raise ValueError(not_allowed(f"{name}={value!r}", "percent, from 0 to 100"))


def _rate(value: object) -> int:
    if value is None:
        return 0
    found = math.nan
    if isinstance(value, (int, str)):
        with contextlib.suppress(ValueError, OverflowError):
            found = quantity(value.lower() if isinstance(value, str) else value, RATES, decimal)
    if not MIN_RATE <= found < MAX_RATE:
        allowed = (
            'a string such as "10mbit", "500kbit" or "1gbit", or a number of bits a second, from '
            f"{MIN_RATE} to below {MAX_RATE}"
        )
        raise ValueError(not_allowed(f"rate={value!r}", allowed))
    return round(found / 8)


@dataclasses.dataclass(frozen=True)
class Netem:
    """Delay, lose, repeat and reorder what leaves a device: the module sch_netem."""

    index: int
    name: str
    delay: int
    jitter: int
    loss: float
    rate: int
    reorder: float
    duplicate: float

    stage: ClassVar[str] = "network: shape by netem"
    forgiven: ClassVar[tuple[int, ...]] = ()

    @property
    def subject(self) -> str:
        return self.name

    def describe(self) -> str:
        return f"shape {self.name} by netem"

    def message(self) -> bytes:
        nested: list[tuple[str, Any]] = []
        if self.reorder:
            nested.append(
                ("TCA_NETEM_REORDER", {"prob_reorder": _share(self.reorder), "corr_reorder": 0})
            )
        if self.rate:
            rate = {"rate": self.rate, "packet_overhead": 0, "cell_size": 0, "cell_overhead": 0}
            nested.append(("TCA_NETEM_RATE", rate))
        options = {
            "delay": int(self.delay * _TICKS),
            "jitter": int(self.jitter * _TICKS),
            "limit": 10_000,  # packets under way; netem's own limit of 1000 loses some
            "loss": _share(self.loss),
            "duplicate": _share(self.duplicate),
            "gap": 1 if self.reorder else 0,
            "attrs": nested,
        }
        return _qdisc(_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, self.index, "netem", options)


@dataclasses.dataclass(frozen=True)
class Tbf:
    """Hold what leaves a device to a rate in bytes a second: the module sch_tbf."""

    index: int
    name: str
    rate: int

    stage: ClassVar[str] = "network: shape by tbf"
    forgiven: ClassVar[tuple[int, ...]] = ()

    @property
    def subject(self) -> str:
        return self.name

    def describe(self) -> str:
        return f"hold {self.name} to {self.rate} bytes a second"

    def message(self) -> bytes:
        from pyroute2.netlink.rtnl.tcmsg import sched_tbf  # noqa: PLC0415 -- see `link_messages.prepare`

        # What passes at once: 10 ms, or two packets (larger ones are cut up by the kernel).
        # What may wait: 200 ms, or ten packets.
        burst = max(2 * _PACKET, self.rate // 100)
        limit = burst + max(10 * _PACKET, self.rate // 5)
        options = sched_tbf.get_parameters({"rate": self.rate, "burst": burst, "limit": limit})
        return _qdisc(_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, self.index, "tbf", options)


@dataclasses.dataclass(frozen=True)
class Unshape:
    """Take away what shapes a device."""

    index: int
    name: str

    stage: ClassVar[str] = "network: end shaping"
    forgiven: ClassVar[tuple[int, ...]] = (errno.ENOENT, errno.EINVAL)  # it was not shaped

    @property
    def subject(self) -> str:
        return self.name

    def describe(self) -> str:
        return f"shape {self.name} no more"

    def message(self) -> bytes:
        return _qdisc(_DELQDISC, 0, self.index, "", {})


def shaper(index: int, name: str, shape: Shape) -> Operation:
    """Choose the operation that gives a device this shape."""
    if shape == Shape():
        return Unshape(index, name)
    if shape.rate_alone:
        return Tbf(index, name, shape.rate)
    return Netem(index, name, *shape)


def _share(percent: float) -> int:
    return int((2**32 - 1) * percent / 100)


def _qdisc(kind: int, flags: int, index: int, name: str, options: dict[str, Any]) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg  # noqa: PLC0415 -- see `link_messages.prepare`

    attributes: list[tuple[str, Any]] = []
    if name:
        attributes = [("TCA_KIND", name), ("TCA_OPTIONS", options)]
    values = {"index": index, "handle": 0, "parent": _TC_ROOT, "attrs": attributes}
    return encode(tcmsg(), kind, flags, values)
