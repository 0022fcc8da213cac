"""Work out the spec of each test from its markers, the options and the spec hook."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.spec.bounds import parse_cpus
from pytest_nsisolate.spec.keys import KEYS, Layer, SpecError, not_allowed, refusal
from pytest_nsisolate.spec.merging import check_snapshot, merge, with_bundle
from pytest_nsisolate.spec.parsing import parse_value
from pytest_nsisolate.spec.profiles import BUNDLES
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from .options import Options


def specs_of(session: pytest.Session, options: Options) -> dict[int, Spec]:
    """Read the spec of each test that is to be isolated, by the index of its item.

    Raises:
        pytest.UsageError: specs are wrong. Its text has a line for each mistake.
    """
    specs: dict[int, Spec] = {}
    errors: list[str] = []
    hook = session.config.hook.pytest_nsisolate_spec
    hooked = bool(hook.get_hookimpls())
    for index, item in enumerate(session.items):
        try:
            spec = spec_of(item, options)
            if spec is not None and hooked:
                spec = _ask_hook(item, spec)
        except SpecError as error:
            if str(error) not in errors:
                errors.append(str(error))
            continue
        if spec is not None:
            specs[index] = spec
            if spec.cpuset is not None and LINUX:
                errors += _missing_cpus(item, spec.cpuset)
            if spec.pcap is not None:
                errors += _missing_directory(item)
    if errors:
        raise pytest.UsageError("\n".join(errors))
    return specs


def spec_of(item: pytest.Item, options: Options) -> Spec | None:
    """Work out the spec of *item* before any hook; None if it is not to be isolated.

    Raises:
        SpecError: the marker, or the combination of keys, is wrong.
    """
    layers = layers_of(item, options)
    return None if layers is None else complete(merge(layers), item)


def layers_of(item: pytest.Item, options: Options) -> list[Layer] | None:
    """Collect the places that give keys to *item*, the nearest first.

    Returns:
        None if the test is not to be isolated.

    Raises:
        SpecError: a marker is wrong.
    """
    marks = list(item.iter_markers("isolated"))  # the nearest first
    isolate = options.isolate
    layers = [options.outer]
    for position, mark in enumerate(marks):
        source = f"{item.nodeid}: @pytest.mark.isolated"
        if len(mark.args) > 1 or (mark.args and not isinstance(mark.args[0], bool)):
            allowed = f"keys ({', '.join(KEYS)}), or False alone to opt out"
            raise SpecError(f"{source}: {not_allowed(', '.join(map(repr, mark.args)), allowed)}")
        if mark.args and not mark.args[0] and mark.kwargs:
            raise SpecError(
                f"{source}: False contradicts {', '.join(mark.kwargs)}; leave out one of the two"
            )
        if position == 0:
            isolate = not mark.args or mark.args[0]
        if mark.args and not mark.args[0]:
            if position == 0:
                break
            continue
        values = {name: parse_value(name, value, source) for name, value in mark.kwargs.items()}
        layers.append(Layer(source, values))
    return [*layers, options.inner] if isolate else None


def source_of(item: pytest.Item, options: Options, key: str) -> str:
    """Name the place that gives *key* to *item*, for an error text; "" if no place does."""
    for layer in layers_of(item, options) or ():
        if key in layer.values:
            if layer is options.outer:
                return f"option --ns-{KEYS[key].dashed}"
            return f"ini nsisolate_{key}" if layer is options.inner else "@pytest.mark.isolated"
    return ""


def complete(spec: Spec, item: pytest.Item, *, source: str = "", bundled: str | None = "") -> Spec:
    """Add to *spec* what depends on the host and on the root directory of the tests.

    Args:
        source: the place that gives its paths, if that is not a marker.
        bundled: the profile whose keys it has already, if that may be another one.

    Raises:
        SpecError: a path in it is not allowed.
    """
    root = str(item.config.rootpath)
    if bundled != "" and spec.profile not in (None, bundled):
        spec = with_bundle(spec)
    if spec.rootfs is not None or spec.hide or spec.writable:
        from pytest_nsisolate.spec.paths import resolve  # noqa: PLC0415 -- only where a test names paths

        spec = resolve(spec, source or item.nodeid, root)
    if spec.profile is not None and spec.rootfs is None:
        given = tuple(os.path.realpath(path) + "/" for path in spec.writable)
        sockets = _host_sockets(root, spec.fs)
        hidden = {one for one in sockets if not f"{one}/".startswith(given)}
        spec = dataclasses.replace(spec, hide=tuple(sorted({*spec.hide, *hidden})))
    return spec


@functools.cache
def _host_sockets(root: str, fs: str) -> tuple[str, ...]:
    # Only with a profile.
    from pytest_nsisolate.core.linux.syscalls import getcwd  # noqa: PLC0415
    from pytest_nsisolate.files.host_sockets import find, without_directories  # noqa: PLC0415

    found = find(os.environ, [root, getcwd()])
    return without_directories(found) if fs == "overlay" else found


def _ask_hook(item: pytest.Item, spec: Spec) -> Spec:
    """Call the spec hook, and check the keys that it changed as those of a marker are checked."""
    changed = item.ihook.pytest_nsisolate_spec(item=item, spec=spec)
    if changed is None:
        return spec
    if not isinstance(changed, Spec):
        raise pytest.UsageError(
            f"{item.nodeid}: the hook pytest_nsisolate_spec returned {changed!r}; "
            f"allowed: None, or a Spec (dataclasses.replace(spec, timeout=10) makes one)"
        )
    source = f"{item.nodeid}: hook pytest_nsisolate_spec"
    values = {name: getattr(changed, name) for name in KEYS}
    parsed = {
        name: parse_value(name, value, source)
        for name, value in values.items()
        if value != getattr(spec, name)
    }
    if not parsed:
        return changed
    changed = dataclasses.replace(changed, **parsed)
    # What the spec has already, a default in the place of a profile's key included.
    before = changed.asked
    for key, value in BUNDLES.get(spec.profile or "", {}).items():
        if getattr(changed, key) != value:
            before[key] = getattr(changed, key)
    others = {key: value for key, value in before.items() if key not in parsed}
    changed = merge([Layer(source, parsed), Layer(item.nodeid, others)])
    changed = complete(changed, item, source=source, bundled=spec.profile)
    if changed.snapshot is not None:
        check_snapshot(changed, {"snapshot": source})
    return changed


def _missing_cpus(item: pytest.Item, cpuset: str) -> list[str]:
    """Return the error that *cpuset* names CPUs which this machine doesn't have, if it does."""
    online = _online_cpus()
    if not online or parse_cpus(cpuset) <= parse_cpus(online):
        return []
    return [str(refusal(item.nodeid, "cpuset", cpuset, f"CPUs out of {online}"))]


@functools.cache
def _online_cpus() -> str:
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _missing_directory(item: pytest.Item) -> list[str]:
    """Return the error that pcap has no directory to write to, if that is so."""
    if getattr(item.config, "_tmp_path_factory", None) is not None:
        return []
    why = "needs a directory for tmp_path, and pytest's plugin for it is off (-p no:tmpdir)"
    return [f"{item.nodeid}: pcap='failed' {why}; allowed: pcap with that plugin"]
