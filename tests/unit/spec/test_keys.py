"""The table of the marker's keys: each key has all that it must have, and lists follow from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.cli import doctor
from pytest_nsisolate.plugin.plans import Plans
from pytest_nsisolate.sandbox.client import IdMaps
from pytest_nsisolate.spec import holds, profiles
from pytest_nsisolate.spec.keys import KEYS, Flag, Key, having
from pytest_nsisolate.spec.limits import CONTROLLERS, Limits
from pytest_nsisolate.spec.parsing import RULES, SHAREABLE, parse_value
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path

#: What a key has to say about snapshots: one of these.
ABOUT_SNAPSHOTS = (Flag.SAME, Flag.OWN, Flag.FIRST)
#: A value of each key that is not its default. ``{tmp}`` is a directory.
OTHERS: dict[str, Any] = {
    "profile": "hermetic",
    "net": "host",
    "pcap": "failed",
    "nat": True,
    "forward": [5432],
    "fs": "readonly",
    "rootfs": "{tmp}",
    "writable": ["{tmp}"],
    "hide": ["{tmp}"],
    "propagation": "slave",
    "tmpfs": "1M",
    "timeout": 1,
    "user": "root",
    "hostname": "db",
    "share": ["ipc"],
    "env": "clean",
    "clock": 5,
    "memory": "64M",
    "cpus": 0.5,
    "pids": 8,
    "cpuset": "0",
    "io": {"rbps": "50M"},
    "cpu_weight": 50,
    "io_weight": 50,
    "devices": ["/dev/null"],
    "counters": True,
    "scope": "module",
    "snapshot": "module",
}


def complaints(keys: dict[str, Key]) -> list[str]:
    """What the keys of a table lack."""
    found = []
    for name, key in keys.items():
        places: dict[str, object] = {
            "a field of Spec": name in Spec.__dataclass_fields__,
            "a rule": name in RULES,
            "a row for runs without a sandbox": name in holds.TABLE,
            "one flag about snapshots": sum(one in key.flags for one in ABOUT_SNAPSHOTS) == 1,
            "a value to test it by": name in OTHERS,
            "a field of Limits": name in Limits.__dataclass_fields__ or not key.controller,
            # The sandbox's own /dev holds devices; v1's controller is a second lock.
            "a trial by the doctor": key.controller in ("", "devices")
            or any(getattr(limits, name, None) is not None for limits in doctor._TRIED.values()),
            "a report of its limit": not key.controller or Flag.REPORTED in key.flags,
        }
        found += [f"{name} lacks {what}" for what, has in places.items() if not has]
    return found


def test_each_key_has_what_it_must() -> None:
    assert complaints(KEYS) == []


def test_a_new_key_is_noticed() -> None:
    """One that is only in the table lacks the rest; flags and default can't be left out."""
    found = complaints({"new": Key("new", "text", Flag(0), default=None, controller="new")})
    assert len(found) == len(complaints({"new": Key("new", "", Flag.SAME, default=None)})) + 4
    assert "new lacks one flag about snapshots" in found
    with pytest.raises(TypeError):
        Key("new", "text", default=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Key("new", "text", Flag.SAME)  # type: ignore[call-arg]


def test_nothing_else_is_taken_for_a_key() -> None:
    """All tables have the keys, in the same order where errors or documents list them."""
    assert [*RULES] == [*holds.TABLE] == [*KEYS]
    assert [*OTHERS] == [*KEYS]
    assert Spec.__dataclass_fields__.keys() == KEYS.keys()
    assert Limits.__dataclass_fields__.keys() == CONTROLLERS.keys()
    tried = {key for limits in doctor._TRIED.values() for key in dataclasses.asdict(limits)}
    assert tried == CONTROLLERS.keys()


@pytest.mark.parametrize("name", KEYS)
def test_the_default(name: str) -> None:
    """It is what `Spec` has, and the parser takes it."""
    default = KEYS[name].default
    assert getattr(Spec(), name) == default
    assert parse_value(name, default, "here") == default
    for value in KEYS[name].with_snapshot or ():
        assert parse_value(name, value, "here") == value != default


def test_the_keys_of_a_profile() -> None:
    for bundle in profiles.BUNDLES.values():
        assert {key: parse_value(key, value, "here") for key, value in bundle.items()} == bundle


def test_the_help_names_what_can_be_shared() -> None:
    assert ", ".join(SHAREABLE) in KEYS["share"].help


def test_values_are_hashable() -> None:
    """Also those of environments, in whatever order."""
    one, other = Spec(env={"A": "1", "B": "2"}), Spec(env={"B": "2", "A": "1"})
    names = having(Flag.SAME)
    assert hash(one.values(names)) == hash(other.values(names))
    assert one.values(names) == other.values(names) != Spec().values(names)


def test_the_spec_of_a_snapshot() -> None:
    """It has what its tests have in common, and no limits."""
    test = Spec(tmpfs=1 << 20, timeout=3, memory=64 << 20, counters=True, devices=("/dev/null",))
    assert test.for_snapshot() == dataclasses.replace(test, memory=None, counters=False)


@pytest.mark.skipif(sys.platform != "linux", reason="plans are of mounts")
@pytest.mark.parametrize("name", KEYS)
def test_another_plan_has_another_number(
    name: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """A key that changes the plan of a sandbox is told apart, with the flag or by what follows."""
    value = OTHERS[name]
    value = [str(tmp_path)] if value == ["{tmp}"] else str(tmp_path) if value == "{tmp}" else value
    spec = Spec(**{name: parse_value(name, value, "here")})
    made = []
    for one in (Spec(), spec):
        plans = Plans(pytestconfig, IdMaps(), None)
        plans.number(one)
        made.append(plans.all[0])
    plans = Plans(pytestconfig, IdMaps(), None)
    numbers = [plans.number(Spec()), plans.number(spec), plans.number(Spec()), plans.number(spec)]
    assert numbers[:2] == numbers[2:]
    if made[0] != made[1]:
        assert numbers[0] != numbers[1]
    if Flag.PLAN in KEYS[name].flags:
        assert numbers[0] != numbers[1]


def test_the_table_is_light() -> None:
    """Every session that has the plugin loads it, before it is known whether a test needs it."""
    code = (
        "import __future__, enum, sys; before = set(sys.modules); "
        "import pytest_nsisolate.spec.keys; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == str(
        ["pytest_nsisolate", "pytest_nsisolate.spec", "pytest_nsisolate.spec.keys"]
    )
