"""Define the spec of a test: the values of all keys, and what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import profiles
from .keys import KEYS, Flag, having
from .limits import CONTROLLERS, Limits
from .parsing import NETS, Forward

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one test asks for, checked. The fields are the keys of the marker."""

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
        """The keys that are not at their defaults, with their values."""
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
        """The limits that a control group holds the test to."""
        return Limits(**{key: getattr(self, key) for key in CONTROLLERS})

    @property
    def sealed(self) -> bool:
        """Whether the test can't write to the host's files."""
        return self.fs != "host" or self.rootfs is not None

    @property
    def topology(self) -> str:
        """The text of the topology; "" if the test has another network."""
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
        """Whether the sandbox's network is connected to the host in any way."""
        return self.linked or bool(self.forward)

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """Make the environment of the test out of *current*."""
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
