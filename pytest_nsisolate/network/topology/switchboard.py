"""Change the switches of a running network: which hosts hear each other, while packets pass.

A switch whose hosts don't all hear each other is several bridges, with cables between
those that do (`topology.divide`). Ports move; that takes effect at once and costs no
address, route or carrier. Bridges and cables that are not needed any more are kept for
the next time: to delete one takes the kernel some 30 ms. A switch that is an `nft_switch`
becomes a bridge before its first change, while packets pass.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.spec import topology

from . import blueprint, link_messages, nft_switch, shaping
from .shaping import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.spec.topology import Switch, Topology

#: Two hosts on a switch.
Pair = frozenset[int]
#: A switch's number, and two hosts on it.
Place = tuple[int, Pair]
Part = frozenset[int]

#: How long links may take to pass packets, in seconds.
_WAIT = 1.0
_PLAIN = Shape()
#: What a device has after a change that failed.
_UNKNOWN = Shape(delay=-1)


class Cable(NamedTuple):
    """Between two parts of a switch: neither passes on what comes from another cable."""

    near: int
    far: int
    name: str

    @property
    def ends(self) -> tuple[tuple[int, str], tuple[int, str]]:
        return (self.near, self.name), (self.far, self.name + ".1")

    def make(self) -> list[link_messages.Operation]:
        near, far = self.ends
        return [link_messages.AddPair(*near, *far, -1, "", "")]

    def plug(self, bridge: int, other: int) -> list[link_messages.Operation]:
        near, far = self.ends
        return [
            link_messages.SetMaster(*near, bridge),
            link_messages.SetMaster(*far, other),
            link_messages.Isolate(*near),
            link_messages.Isolate(*far),
            link_messages.SetLink(*far, up=True),
        ]

    def unplug(self) -> list[link_messages.Operation]:
        near, far = self.ends
        return [
            link_messages.SetMaster(*near, 0),
            link_messages.SetMaster(*far, 0),
            link_messages.SetLink(*far, up=False),
        ]


class Switchboard:
    """All switches of one network. Only one thread may use it at a time."""

    def __init__(self, plan: Topology, built: blueprint.Built) -> None:
        self._plan = plan
        self._wires = built.wires
        self._rules = built.rules
        self._crossbars = set(built.crossbars)
        self._cuts: list[set[Place]] = []
        self._down: set[Place] = set()
        self._shapes: dict[Place, Shape] = {}
        self._numbers = itertools.count(blueprint.EXTRA)
        self._spare_bridges: list[int] = []
        self._spare_cables: list[Cable] = []
        self._shaped: dict[int, Shape] = {}  # by index of a device
        self._parts: dict[int, dict[Part, int]] = {
            switch.number: {
                frozenset(port.host for port in switch.ports): blueprint.bridge_index(switch.number)
            }
            for switch in plan.switches
        }
        self._cables: dict[int, dict[frozenset[Part], Cable]] = {
            switch.number: {} for switch in plan.switches
        }

    # what is wanted; each method brings it about, or raises StageError

    def cut(self, pairs: set[Place]) -> None:
        """Let nothing pass between these, as long as this very set is not healed."""
        self._cuts.append(pairs)
        self._bring_about({switch for switch, _ in pairs})

    def heal(self, cuts: list[set[Place]]) -> None:
        """End these cuts."""
        self._cuts = [one for one in self._cuts if not any(one is other for other in cuts)]
        self._bring_about({switch for cut in cuts for switch, _ in cut})

    @property
    def cuts(self) -> list[set[Place]]:
        """Those there are."""
        return list(self._cuts)

    def set_pair(self, place: Place, *, up: bool) -> None:
        """Let two hosts on a switch hear each other, or not."""
        if up:
            self._down.discard(place)
        else:
            self._down.add(place)
        self._bring_about({place[0]})

    def shape_pair(self, place: Place, shape: Shape) -> None:
        """Shape what two hosts on a switch say to each other."""
        before = self._shapes.get(place, _PLAIN)
        self._shapes[place] = shape
        try:
            self._bring_about({place[0]})
        except StageError:
            self._shapes[place] = before
            self._bring_about({place[0]})
            raise

    def set_ports(self, number: int, ends: Iterable[tuple[int, str]], *, up: bool) -> None:
        """Plug these ends of a switch in, or pull them: their hosts lose the carrier."""
        if not self._plan.switches[number - 1].is_cable:
            self._bridge(number)
        ends = list(ends)
        self._wires.do(*(link_messages.SetLink(*end, up=up) for end in ends))
        if up:
            self._wait({index for index, _ in ends})

    def shape_ends(self, ends: Iterable[tuple[int, str]], shape: Shape) -> None:
        """Shape what leaves these devices of the fabric."""
        self._do(self._shapers(ends, shape))

    def _shapers(
        self, ends: Iterable[tuple[int, str]], shape: Shape
    ) -> list[link_messages.Operation]:
        steps = []
        for index, name in ends:
            if self._shaped.get(index, _PLAIN) != shape:
                self._shaped[index] = shape
                steps.append(shaping.shaper(index, name, shape))
        return steps

    # bringing it about

    def _bridge(self, number: int) -> None:
        """Make a bridge of a switch that is a crossbar."""
        if number not in self._crossbars or self._rules is None:
            return
        # A port that belongs to a bridge already still is the crossbar's until the end.
        self._wires.do(*blueprint.bridging(self._plan, self._plan.switches[number - 1]))
        self._rules.carry_out(nft_switch.take_down(blueprint.bridge_name(number)))
        self._crossbars.discard(number)

    def _do(self, steps: list[link_messages.Operation]) -> None:
        try:
            self._wires.do(*steps)
        except StageError:
            shapers = (shaping.Netem, shaping.Tbf, shaping.Unshape)
            self._shaped.update({one.index: _UNKNOWN for one in steps if isinstance(one, shapers)})
            raise

    def _bring_about(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            self._bridge(number)
            self._divide(self._plan.switches[number - 1])

    def _divide(self, switch: Switch) -> None:
        number = switch.number
        apart = {pair for cut in self._cuts for one, pair in cut if one == number}
        apart |= {pair for one, pair in self._down if one == number}
        shapes = {
            pair: shape
            for (one, pair), shape in self._shapes.items()
            if one == number and shape != _PLAIN
        }
        members = tuple(port.host for port in switch.ports)
        alone = {host for pair in shapes for host in pair}
        division = topology.divide(members, apart=apart, alone=alone)
        wanted = {frozenset(division.parts[index] for index in pair) for pair in division.cables}
        old, cables = self._parts[number], self._cables[number]
        steps: list[link_messages.Operation] = []

        kept = {part for part in division.parts if part in old}
        for key in [key for key in cables if key not in wanted or not key <= kept]:
            cable = cables.pop(key)
            steps += [*cable.unplug(), *self._shapers(cable.ends, _PLAIN)]
            self._spare_cables.append(cable)

        new = self._assign(number, division.parts, steps)
        bridge_of = {host: bridge for part, bridge in old.items() for host in part}
        for port in switch.ports:
            bridge = next(bridge for part, bridge in new.items() if port.host in part)
            if bridge_of[port.host] != bridge:
                steps.append(
                    link_messages.SetMaster(
                        blueprint.port_index(port), blueprint.port_name(port), bridge
                    )
                )
        self._parts[number] = new

        made: set[int] = set()
        for key in wanted:
            if key not in cables:
                cables[key] = self._cable(steps)
                steps += cables[key].plug(*(new[part] for part in sorted(key, key=min)))
                made |= {index for index, _ in cables[key].ends}
            hosts = Pair().union(*key)
            steps += self._shapers(cables[key].ends, shapes.get(hosts, _PLAIN))
        self._do(steps)
        self._wait(made)

    def _assign(
        self, number: int, parts: tuple[Part, ...], steps: list[link_messages.Operation]
    ) -> dict[Part, int]:
        """Give each part a bridge; a part that was there before keeps its own."""
        old = self._parts[number]
        new = {part: old[part] for part in parts if part in old}
        # The switch's own bridge has the lowest index, and so stays in use.
        free = sorted(bridge for part, bridge in old.items() if part not in new)
        for part in sorted(set(parts) - set(new), key=lambda one: (-len(one), min(one))):
            if free:
                new[part] = free.pop(0)
            elif self._spare_bridges:
                new[part] = self._spare_bridges.pop()
            else:
                new[part] = next(self._numbers)
                name = f"{blueprint.bridge_name(number)}.{new[part] - blueprint.EXTRA}"
                steps.append(link_messages.AddBridge(new[part], name, "a part of a switch"))
        self._spare_bridges += free
        return new

    def _cable(self, steps: list[link_messages.Operation]) -> Cable:
        if self._spare_cables:
            return self._spare_cables.pop()
        near, far = next(self._numbers), next(self._numbers)
        cable = Cable(near, far, f"u{near - blueprint.EXTRA}")
        steps += cable.make()
        return cable

    def _wait(self, indexes: set[int]) -> None:
        if indexes:
            # The other end may have been brought down by the test itself.
            with contextlib.suppress(StageError):
                self._wires.wait_up(indexes, _WAIT)
