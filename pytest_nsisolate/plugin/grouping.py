"""Work out which tests share a test process, and which ones share a snapshot.

Tests in a row share a test process if their specs are equal and they are in one class or module.
Tests of one class, module or session share a snapshot if they ask for equal sandboxes and have
the same parameters for its fixtures. Snapshots form a tree by their scopes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_nsisolate.runner.snapshot import Snapshot
from pytest_nsisolate.spec.keys import Flag, having
from pytest_nsisolate.testprocess.snapshot_fixtures import RANKS, Setting

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec

#: Keys that the tests of one snapshot agree in.
_SAME = having(Flag.SAME)
_NODES: dict[str, type[pytest.Collector]] = {"class": pytest.Class, "module": pytest.Module}


def _node(item: pytest.Item, spec: Spec) -> pytest.Collector | None:
    kind = _NODES.get(spec.scope)
    return None if kind is None else item.getparent(kind)


def together(items: list[pytest.Item], specs: dict[int, Spec], first: int, second: int) -> bool:
    """Return whether *second* runs in the process of *first*, if it runs right after it."""
    one, other = specs.get(first), specs.get(second)
    if one is None or other is None or one.scope == "function" or one != other:
        return False
    node = _node(items[first], one)
    return node is not None and node is _node(items[second], other)


class Tree(NamedTuple):
    """The snapshots of a session.

    Attributes:
        of: the snapshot of each item that is forked from one.
        settings: what each snapshot sets up, by its number.
        snapshots: all of them, by number.
    """

    of: dict[int, Snapshot]
    settings: list[Setting]
    snapshots: list[Snapshot]


class _Wish(NamedTuple):
    """What items must have in common to be forked from one snapshot."""

    rank: int
    node: pytest.Collector
    kind: tuple[object, ...]
    parameters: frozenset[tuple[str, int]]


def _wish(item: pytest.Item, spec: Spec) -> _Wish:
    scope = str(spec.snapshot)
    # A function outside of any class shares what its module has.
    names = {"class": ("class", "module"), "module": ("module",), "session": ()}[scope]
    node: pytest.Collector = item.session
    rank = RANKS["session"]
    for name in names:
        found = item.getparent(_NODES[name])
        if found is not None:
            node, rank = found, RANKS[name]
            break
    callspec: Any = getattr(item, "callspec", None)
    parameters = frozenset(
        (name, callspec.indices[name])
        for name in (callspec.params if callspec is not None else ())
        if RANKS[callspec._arg2scope[name].value] <= rank
    )
    return _Wish(rank, node, spec.values(_SAME), parameters)


def tree(items: list[pytest.Item], specs: dict[int, Spec]) -> Tree:
    """Make the snapshots that the *specs* ask for, each a fork of the narrowest one around it."""
    members: dict[_Wish, list[int]] = {}
    for index, spec in specs.items():
        if spec.snapshot is not None:
            members.setdefault(_wish(items[index], spec), []).append(index)
    found = Tree({}, [], [])
    made: dict[_Wish, Snapshot] = {}
    for wish in sorted(members, key=lambda one: one.rank):
        indexes = members[wish]
        outer = [one for one in made if _holds(one, wish)]
        parent = made[max(outer, key=lambda one: one.rank)] if outer else None
        spec = specs[indexes[0]].for_snapshot()
        snapshot = Snapshot(len(found.snapshots), indexes, spec, parent)
        made[wish] = snapshot
        found.snapshots.append(snapshot)
        found.settings.append(
            Setting(wish.node, wish.rank, [items[index] for index in indexes], spec)
        )
        found.of.update(dict.fromkeys(indexes, snapshot))
        for one in snapshot.chain:
            one.needed_until(indexes[-1])
    return found


def _holds(outer: _Wish, inner: _Wish) -> bool:
    """Return whether a snapshot may be a fork of another one."""
    return (
        outer.rank < inner.rank
        and outer.kind == inner.kind
        and outer.node in inner.node.listchain()
        and outer.parameters <= inner.parameters
    )
