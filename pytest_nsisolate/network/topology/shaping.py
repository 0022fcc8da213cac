"""How a device's queue is shaped, as operations (`linkops.Operation`)."""

from __future__ import annotations

import dataclasses
import errno
from typing import Any, ClassVar

from .link_messages import CREATE, REPLACE, encode

# linux/rtnetlink.h, linux/pkt_sched.h
_NEWQDISC, _DELQDISC = 36, 37
_TC_ROOT = 0xFFFFFFFF
#: On the wire, at most, in bytes.
_PACKET = 1600
_TICKS = 1000 / 64  # of the packet scheduler, a microsecond (PSCHED_SHIFT is 6)


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
        return _qdisc(_NEWQDISC, CREATE | REPLACE, self.index, "netem", options)


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
        from pyroute2.netlink.rtnl.tcmsg import sched_tbf  # noqa: PLC0415 -- see `linkops.prepare`

        # What passes at once: 10 ms, or two packets (larger ones are cut up by the kernel).
        # What may wait: 200 ms, or ten packets.
        burst = max(2 * _PACKET, self.rate // 100)
        limit = burst + max(10 * _PACKET, self.rate // 5)
        options = sched_tbf.get_parameters({"rate": self.rate, "burst": burst, "limit": limit})
        return _qdisc(_NEWQDISC, CREATE | REPLACE, self.index, "tbf", options)


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


def _share(percent: float) -> int:
    return int((2**32 - 1) * percent / 100)


def _qdisc(kind: int, flags: int, index: int, name: str, options: dict[str, Any]) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg  # noqa: PLC0415 -- see `linkops.prepare`

    attributes: list[tuple[str, Any]] = []
    if name:
        attributes = [("TCA_KIND", name), ("TCA_OPTIONS", options)]
    values = {"index": index, "handle": 0, "parent": _TC_ROOT, "attrs": attributes}
    return encode(tcmsg(), kind, flags, values)
