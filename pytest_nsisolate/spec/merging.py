"""Merge the keys that several places give into one spec, and refuse contradictions.

The nearer place wins, key by key. Some keys exclude each other: `_RULES` says which ones, and
what happens then.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any, NamedTuple

from . import holds, profiles
from .keys import KEYS, Layer, SpecError
from .parsing import NETS, written
from .spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def merge(layers: list[Layer]) -> Spec:
    """Merge *layers*, of which the earlier ones are nearer.

    Raises:
        SpecError: keys contradict each other.
    """
    given = _Given(layers)
    for rule in _RULES:
        rule.apply(given)
    spec = Spec(**given.values)
    if spec.topology:
        _check_host_names(spec, given.sources)
    if spec.snapshot is not None:
        check_snapshot(spec, given.sources)
    return spec


def with_bundle(spec: Spec) -> Spec:
    """Give *spec* the keys of its profile where it has defaults."""
    bundle = profiles.BUNDLES.get(spec.profile or "", {})
    missing = {
        name: value for name, value in bundle.items() if getattr(spec, name) == KEYS[name].default
    }
    return dataclasses.replace(spec, **missing)


class _Given:
    """The keys that some place gives.

    Attributes:
        values: what is given, as far as no rule has left it out.
        places: how far away each key is given: the index of its layer. A profile is farthest.
        sources: the names of the places, for errors.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, int] = {}
        self.sources: dict[str, str] = {}
        for place, layer in enumerate(layers):
            self._add(layer, place)
        profile = self.values.get("profile")
        bundle = profiles.BUNDLES.get(profile or "", {})
        self._add(Layer(f"profile={profile!r}", bundle), len(layers))

    def _add(self, layer: Layer, place: int) -> None:
        for key, value in layer.values.items():
            if key not in self.values:
                self.values[key], self.places[key] = value, place
                self.sources[key] = layer.source

    def leave_out(self, key: str) -> None:
        """Go by the default instead."""
        del self.values[key]

    def unshare(self, namespace: str) -> None:
        """Leave one namespace out of those that are shared."""
        self.values["share"] = tuple(one for one in self.values["share"] if one != namespace)


class _Settle(enum.Enum):
    """What happens to two keys that contradict each other."""

    NEARER_WINS = "the farther one is left out; in one place it is an error"
    ERROR_IN_ONE_PLACE = "in one place it is an error; in two places nothing happens"
    ERROR = "it is an error wherever they are given"


class _Contradiction(NamedTuple):
    """A rule: two keys that can't both have the values that are given.

    Attributes:
        one, other: the keys, in the order in which an error names them.
        clash: whether the two values contradict each other.
        settle: what happens then.
        why: the reason, for the error.
        namespace: what ``share`` loses if it is the one to be left out.
    """

    one: str
    other: str
    clash: Callable[[Any, Any], bool]
    settle: _Settle
    why: str
    namespace: str = ""

    def apply(self, given: _Given) -> None:
        """Leave out the farther key, or raise SpecError."""
        values = given.values
        if self.one not in values or self.other not in values:
            return
        if not self.clash(values[self.one], values[self.other]):
            return
        distance = given.places[self.one] - given.places[self.other]
        if self.settle is _Settle.ERROR or distance == 0:
            where = f" ({given.sources[self.other]})" if self.settle is _Settle.ERROR else ""
            raise SpecError(
                f"{given.sources[self.one]}: {written(self.one, values[self.one])} contradicts "
                f"{written(self.other, values[self.other])}{where}: {self.why}; "
                "leave out one of the two"
            )
        if self.settle is _Settle.ERROR_IN_ONE_PLACE:
            return
        farther = self.one if distance > 0 else self.other
        if farther == "share":
            given.unshare(self.namespace)
        else:
            given.leave_out(farther)


class _Need(NamedTuple):
    """A rule: a key that does nothing without a certain network.

    It is left out if the network is given nearer. Else it is an error.
    """

    key: str
    network: holds.Network

    def apply(self, given: _Given) -> None:
        """Leave out the key, or raise SpecError."""
        values = given.values
        net = values.get("net", Spec.net)
        shared = net == "host" or "net" in values.get("share", ())
        if not values.get(self.key) or (not shared and self.network.fits(net)):
            return
        about = ("net", "share")
        place = given.places[self.key]
        if any(given.places.get(key, place) < place for key in about):
            given.leave_out(self.key)
            return
        said = [f"{key}={values[key]!r}" for key in about if values.get(key)]
        raise SpecError(
            f"{given.sources[self.key]}: {written(self.key, values[self.key])} needs "
            f"{self.network.needs}, which contradicts "
            f"{' and '.join(said) or 'the default net=' + repr(Spec.net)}; "
            f"allowed: {self.key} with {self.network.allowed}"
        )


_ONE_OWNER = "the {} namespace is either the test's own or the host's"
_OWN_ROOT = "the sandbox then has a root of its own, and the host's mounts don't reach that"

#: Applied in this order: a rule does not see what an earlier one has left out.
_RULES: tuple[_Contradiction | _Need, ...] = (
    _Contradiction(
        "net",
        "share",
        lambda net, share: "net" in share and net in NETS and net != "host",
        _Settle.NEARER_WINS,
        _ONE_OWNER.format("net"),
        namespace="net",
    ),
    _Contradiction(
        "net",
        "share",
        lambda net, share: "net" in share and net not in NETS,
        _Settle.ERROR_IN_ONE_PLACE,
        _ONE_OWNER.format("net"),
    ),
    _Contradiction(
        "hostname",
        "share",
        lambda hostname, share: "uts" in share,
        _Settle.NEARER_WINS,
        _ONE_OWNER.format("uts"),
        namespace="uts",
    ),
    _Contradiction(
        "propagation",
        "fs",
        lambda propagation, fs: propagation == "slave" and fs == "overlay",
        _Settle.ERROR,
        _OWN_ROOT,
    ),
    _Contradiction(
        "propagation",
        "rootfs",
        lambda propagation, rootfs: propagation == "slave" and rootfs is not None,
        _Settle.ERROR,
        _OWN_ROOT,
    ),
    *(_Need(key, row.network) for key, row in holds.TABLE.items() if row.network is not None),
    _Contradiction(
        "scope",
        "snapshot",
        lambda scope, snapshot: scope != "function" and snapshot is not None,
        _Settle.NEARER_WINS,
        "tests either share one process, or each is a fork of one",
    ),
    _Contradiction(
        "net",
        "share",
        lambda net, share: "net" in share and net not in NETS,
        _Settle.ERROR,
        "a topology lies in a network namespace of the test's own",
    ),
)


def _check_host_names(spec: Spec, sources: Mapping[str, str]) -> None:
    """Refuse a topology that has a host with the name of the sandbox."""
    from .topology import parse  # noqa: PLC0415 -- only where a test has one

    for node in parse(spec.net).hosts:
        if node.name.lower() == spec.hostname.lower():
            raise SpecError(
                f"{sources['net']}: net={spec.net!r} names a host {node.name!r}, and so is the "
                f"sandbox itself called (hostname={spec.hostname!r}); change one of the two"
            )


def check_snapshot(spec: Spec, sources: Mapping[str, str]) -> None:
    """Refuse what the sandboxes inside that of a snapshot can't have.

    Args:
        sources: the places that give the keys, with one for ``snapshot``.

    Raises:
        SpecError: there is such a key.
    """
    for name, key in KEYS.items():
        value = getattr(spec, name)
        if key.with_snapshot is None or value in (key.default, *key.with_snapshot):
            continue
        where = f" ({sources[name]})" if name in sources else ""
        fits = " or ".join(f"{name}={one!r}" for one in (key.default, *key.with_snapshot))
        raise SpecError(
            f"{sources['snapshot']}: snapshot={spec.snapshot!r} contradicts "
            f"{written(name, value)}{where}: the tests of a snapshot are forks into "
            "sandboxes inside its own, which have the host's files, the host's clocks, and a plain "
            f"network; allowed with snapshot: {fits}; leave out one of the two"
        )
