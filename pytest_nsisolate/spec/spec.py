"""What one test asks for: the values of all keys, and how they merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import holds, profiles
from .keys import KEYS, Flag, Layer, SpecError, having
from .limits import CONTROLLERS, Limits
from .parsing import NETS, Forward, written

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Spec:
    """One test's wishes, validated. Field names are the keys of the marker."""

    profile: str | None = KEYS["profile"].default
    net: str = KEYS["net"].default
    nat: bool = KEYS["nat"].default
    forward: tuple[Forward, ...] = KEYS["forward"].default
    fs: str = KEYS["fs"].default
    rootfs: str | None = KEYS["rootfs"].default
    writable: tuple[str, ...] = KEYS["writable"].default
    hide: tuple[str, ...] = KEYS["hide"].default
    propagation: str = KEYS["propagation"].default
    tmpfs: int = KEYS["tmpfs"].default
    timeout: float | None = KEYS["timeout"].default
    user: str = KEYS["user"].default
    hostname: str = KEYS["hostname"].default
    share: tuple[str, ...] = KEYS["share"].default
    env: str | Mapping[str, str] = KEYS["env"].default
    clock: float | None = KEYS["clock"].default
    memory: int | None = KEYS["memory"].default
    cpus: float | None = KEYS["cpus"].default
    pids: int | None = KEYS["pids"].default
    cpuset: str | None = KEYS["cpuset"].default
    io: Mapping[str, int] | None = KEYS["io"].default
    cpu_weight: int | None = KEYS["cpu_weight"].default
    io_weight: int | None = KEYS["io_weight"].default
    devices: tuple[str, ...] | None = KEYS["devices"].default
    counters: bool = KEYS["counters"].default
    pcap: str | None = KEYS["pcap"].default
    scope: str = KEYS["scope"].default
    snapshot: str | None = KEYS["snapshot"].default

    @property
    def asked(self) -> dict[str, object]:
        """The keys that are not at their defaults."""
        values = {name: getattr(self, name) for name in KEYS}
        return {name: value for name, value in values.items() if value != KEYS[name].default}

    def values(self, names: Iterable[str]) -> tuple[object, ...]:
        """Return the values of some keys, as one hashable value."""
        return tuple(_hashable(getattr(self, name)) for name in names)

    def for_snapshot(self) -> Spec:
        """Return the spec of the snapshot whose first test has this one."""
        return dataclasses.replace(self, **{name: KEYS[name].default for name in _OWN})

    @property
    def limits(self) -> Limits:
        """What a control group holds the test to."""
        return Limits(**{key: getattr(self, key) for key in CONTROLLERS})

    @property
    def sealed(self) -> bool:
        """Whether the test can't write to the host's files."""
        return self.fs != "host" or self.rootfs is not None

    @property
    def topology(self) -> str:
        """The text of the topology, "" if *net* is none."""
        return "" if self.net in NETS else self.net

    @property
    def shared(self) -> tuple[str, ...]:
        """All namespaces that stay the host's, ``net="host"`` included."""
        extra = ("net",) if self.net == "host" and "net" not in self.share else ()
        return self.share + extra

    @property
    def linked(self) -> bool:
        """Whether the sandbox has a link to the host."""
        return self.net == "veth" and "net" not in self.share

    @property
    def outward(self) -> bool:
        """Whether anything outside is brought into the sandbox's network."""
        return self.linked or bool(self.forward)

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """The environment of the test, made of *current*."""
        if self.env == "inherit":
            return dict(current)
        if self.profile is not None:
            added = {} if isinstance(self.env, str) else self.env
            return {**profiles.fixed(current), **added}
        if self.env == "clean":
            return profiles.clean(current)
        assert not isinstance(self.env, str)
        return {**current, **self.env}


#: Keys that hold the tests of a snapshot, and not what is set up once for all of them.
_OWN = having(Flag.OWN)


def _hashable(value: object) -> object:
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


def with_bundle(spec: Spec) -> Spec:
    """*spec* with the keys of its profile in the place of defaults."""
    bundle = profiles.BUNDLES.get(spec.profile or "", {})
    missing = {
        name: value for name, value in bundle.items() if getattr(spec, name) == KEYS[name].default
    }
    return dataclasses.replace(spec, **missing)


def merge(layers: list[Layer]) -> Spec:
    """One spec out of *layers*, the earlier over the later, key by key.

    Raises:
        SpecError: keys that can't be together.
    """
    values: dict[str, Any] = {}
    places: dict[str, int] = {}  # in `layers`; nearer ones have lower numbers
    sources: dict[str, str] = {}
    for place, layer in enumerate(layers):
        for key, value in layer.values.items():
            if key not in values:
                values[key], places[key], sources[key] = value, place, layer.source
    named = values.get("profile")
    for key, value in profiles.BUNDLES.get(named or "", {}).items():
        if key not in values:
            values[key], places[key] = value, len(layers)
            sources[key] = f"profile={named!r}"
    _check_shared(values, places, sources)
    for key in ("fs", "rootfs"):
        if values.get("propagation") == "slave" and values.get(key) not in (
            None,
            "host",
            "readonly",
        ):
            raise SpecError(
                f"{sources['propagation']}: propagation='slave' contradicts {key}={values[key]!r} "
                f"({sources[key]}): the sandbox then has a root of its own, and the host's mounts "
                f"don't reach that; leave out one of the two"
            )
    _check_network(layers, values)
    _choose_together(values, places, sources)
    spec = Spec(**values)
    if spec.topology:
        _check_topology(spec, sources)
    if spec.snapshot is not None:
        check_snapshot(spec, sources)
    return spec


#: Keys about one namespace: key, namespace, and the values that go with the host's.
_OF_NAMESPACES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("net", "net", ("host",)),
    ("hostname", "uts", ()),
)


def _check_shared(
    values: dict[str, Any], places: Mapping[str, int], sources: Mapping[str, str]
) -> None:
    """Refuse a namespace that is shared and has a key, or leave out what is said farther."""
    for key, namespace, fits in _OF_NAMESPACES:
        share = values.get("share", ())
        if namespace not in share or key not in values or values[key] in fits:
            continue
        if places[key] == places["share"]:
            raise SpecError(
                f"{sources[key]}: {key}={values[key]!r} contradicts share={share!r}: "
                f"the {namespace} namespace is either the test's own or the host's; "
                f"leave out one of the two"
            )
        if key == "net" and values[key] not in NETS:
            continue  # see `_check_topology`
        if places[key] < places["share"]:
            values["share"] = tuple(one for one in share if one != namespace)
        else:
            del values[key]


def _choose_together(
    values: dict[str, Any], places: Mapping[str, int], sources: Mapping[str, str]
) -> None:
    """Leave out the farther one of ``scope`` and ``snapshot``."""
    if not values.get("snapshot") or values.get("scope", "function") == "function":
        return
    if places["snapshot"] == places["scope"]:
        raise SpecError(
            f"{sources['scope']}: scope={values['scope']!r} contradicts "
            f"snapshot={values['snapshot']!r}: tests either share one process, or each is a "
            "fork of one; leave out one of the two"
        )
    del values[max(("snapshot", "scope"), key=lambda key: places[key])]


def check_snapshot(spec: Spec, sources: Mapping[str, str]) -> None:
    """Refuse what the sandboxes inside that of a snapshot can't have.

    Args:
        sources: where the keys stand.

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


def _check_network(layers: list[Layer], values: dict[str, Any]) -> None:
    """Refuse what needs another network, or leave it out if the network is said nearer."""
    net = values.get("net", Spec.net)
    shared = net == "host" or "net" in values.get("share", ())
    for key, row in holds.TABLE.items():
        network = row.network
        if network is None or not values.get(key) or (not shared and network.fits(net)):
            continue
        asked = next(n for n, layer in enumerate(layers) if key in layer.values)
        chosen = [n for n, layer in enumerate(layers) if {"net", "share"} & layer.values.keys()]
        if chosen and chosen[0] < asked:
            del values[key]
            continue
        said = [f"{name}={values[name]!r}" for name in ("net", "share") if values.get(name)]
        raise SpecError(
            f"{layers[asked].source}: {written(key, values[key])} needs {network.needs}, "
            f"which contradicts {' and '.join(said) or 'the default net=' + repr(Spec.net)}; "
            f"allowed: {key} with {network.allowed}"
        )


def _check_topology(spec: Spec, sources: Mapping[str, str]) -> None:
    from .topology import parse  # noqa: PLC0415 -- only where a test has one

    source = sources["net"]
    if "net" in spec.shared:
        raise SpecError(
            f"{source}: net={spec.net!r} contradicts share={spec.share!r} "
            f"({sources['share']}): a topology lies in a network namespace of the test's own; "
            "leave out one of the two"
        )
    for node in parse(spec.net).hosts:
        if node.name.lower() == spec.hostname.lower():
            raise SpecError(
                f"{source}: net={spec.net!r} names a host {node.name!r}, and so is the sandbox "
                f"itself called (hostname={spec.hostname!r}); change one of the two"
            )
