"""What one test asks for: the values of all keys, and how they merge."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from . import holds, profiles
from .bounds import CONTROLLERS
from .keys import Layer, SpecError
from .limits import Limits
from .parsing import NETS, Forward

if TYPE_CHECKING:
    from collections.abc import Mapping


#: Keys that a snapshot's tests may not have but at their defaults, and what else is allowed.
_WITH_SNAPSHOT: dict[str, tuple[str, ...]] = {
    "profile": (),
    "net": ("host",),
    "nat": (),
    "forward": (),
    "pcap": (),
    "fs": (),
    "rootfs": (),
    "writable": (),
    "hide": (),
    "propagation": (),
    "clock": (),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One test's wishes, validated. Field names are the keys of the marker."""

    profile: str | None = None
    net: str = "loopback"
    nat: bool = False
    forward: tuple[Forward, ...] = ()
    fs: str = "host"
    rootfs: str | None = None
    writable: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    propagation: str = "private"
    tmpfs: int = 256 << 20
    timeout: float | None = None
    user: str = "same"
    hostname: str = "isolated"
    share: tuple[str, ...] = ()
    env: str | Mapping[str, str] = "inherit"
    clock: float | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    cpuset: str | None = None
    io: Mapping[str, int] | None = None
    cpu_weight: int | None = None
    io_weight: int | None = None
    devices: tuple[str, ...] | None = None
    counters: bool = False
    pcap: str | None = None
    scope: str = "function"
    snapshot: str | None = None

    @property
    def asked(self) -> dict[str, object]:
        """The keys that are not at their defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        default = Spec()
        return {key: value for key, value in values.items() if value != getattr(default, key)}

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


def with_bundle(spec: Spec) -> Spec:
    """*spec* with the keys of its profile in the place of defaults."""
    default = Spec()
    bundle = profiles.BUNDLES.get(spec.profile or "", {})
    missing = {
        name: value
        for name, value in bundle.items()
        if getattr(spec, name) == getattr(default, name)
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
    default = Spec()
    for key, allowed in _WITH_SNAPSHOT.items():
        value = getattr(spec, key)
        if value in (getattr(default, key), *allowed):
            continue
        where = f" ({sources[key]})" if key in sources else ""
        fits = " or ".join(f"{key}={one!r}" for one in (getattr(default, key), *allowed))
        raise SpecError(
            f"{sources['snapshot']}: snapshot={spec.snapshot!r} contradicts "
            f"{holds.written(key, value)}{where}: the tests of a snapshot are forks into sandboxes "
            "inside its own, which have the host's files, the host's clocks, and a plain network; "
            f"allowed with snapshot: {fits}; leave out one of the two"
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
            f"{layers[asked].source}: {holds.written(key, values[key])} needs {network.needs}, "
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
