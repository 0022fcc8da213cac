"""cgroup v2: how a session gets its part of the hierarchy, on trees of plain files."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from helpers.cgroup_tree import Tree
from pytest_nsisolate.cgroups import delegation
from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.cgroups.session import Handover, Session, sweep
from pytest_nsisolate.explain.explain import explain
from pytest_nsisolate.spec.limits import LimitError, Limits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ALL = frozenset({"memory", "cpu", "pids", "cpuset"})
UNIT = "user.slice/run-7.scope"


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegation, "systemd_runs", lambda: False)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "cgroup")


def session(
    tree: Tree,
    base: Path,
    required: frozenset[str] = ALL,
    companions: Sequence[int] = (),
    **options: bool,
) -> Session:
    runtime = str(tree.root.parent / "slots")
    layout = tree.layout(base, **options)
    return Session(required, layout=layout, runtime=runtime, companions=companions)


def settle(tree: Tree, monkeypatch: pytest.MonkeyPatch, path: str = UNIT) -> Path:
    """Install the tree with every controller handed down to ``path``."""
    base = tree.install(monkeypatch)
    (base / "cgroup.procs").write_text("")
    *above, last = path.split("/")
    for name in above:
        base /= name
        tree.make(str(base))
        (base / "cgroup.subtree_control").write_text(tree.controllers)
    base /= last
    tree.make(str(base))
    (base / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return base


def test_own_cgroup(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    with session(tree, base) as one:
        assert not one.errors
        # No process above what has controllers: this one is in a leaf now.
        assert cgroup_layout.processes(str(base)) == []
        assert cgroup_layout.processes(f"{base}/{delegation.LEAF}") == [os.getpid()]
        limits = Limits(memory=1 << 26, cpus=0.5, pids=20, cpuset="1", cpu_weight=200)
        group = one.group(limits)
        (folder,) = map(tree.root.__truediv__, group.directories)
        wanted = {
            "memory.max": "67108864",
            "memory.swap.max": "0",
            "memory.oom.group": "1",
            "cpu.max": "50000 100000",
            "cpu.weight": "200",
            "pids.max": "20",
            "cpuset.cpus": "1",
        }
        assert {name: (folder / name).read_text() for name in wanted} == wanted
        assert "set memory.max to 67108864" in one.plan(limits).describe()
        assert group.usage().cpu_user == 0.002
        assert group.freeze(0) is False  # plain files never freeze
        group.thaw()
        one.end(group)
        time.sleep(0.05)
        one.reap()
        assert not folder.exists()
    assert [path for path in base.iterdir() if path.is_dir()] == []
    assert (base / "cgroup.subtree_control").read_text() == ""
    assert cgroup_layout.processes(str(base)) == [os.getpid()]


def test_another_process_removes_the_cgroups(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits the descriptors; the session leaves the group of a kept sandbox alone."""
    base = settle(tree, monkeypatch)
    with session(tree, base) as one:
        handover = one.handover()
        assert handover is not None
        assert Handover.of_wire(json.loads(json.dumps(handover.to_wire()))) == handover
        assert set(handover.descriptors()) == one.descriptors()
        directory, number, lock = handover.slot
        inherited = dataclasses.replace(
            handover,
            slot=(directory, number, os.dup(lock)),
            locks=tuple(map(os.dup, handover.locks)),
        )
        (kept,) = one.group(Limits(pids=4)).directories
        one.spare([kept])
    assert one.handover() is None, "closed"
    assert os.path.exists(kept)
    (tree.root / kept / "cgroup.procs").write_text("")
    assert inherited.remove(time.monotonic() + 1) == []
    assert [path for path in base.iterdir() if path.is_dir()] == []
    assert cgroup_layout.processes(str(base)) == [os.getpid()]
    assert not (tree.root.parent / "slots").exists()


def test_root_of_the_hierarchy_needs_no_leaf(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tree.install(monkeypatch)
    with session(tree, base) as one:
        assert not one.errors
        assert cgroup_layout.processes(str(base)) == [os.getpid()]
        one.end(one.group(Limits(pids=4)))
    assert [path for path in base.iterdir() if path.is_dir()] == []


def test_two_sessions_share_one_cgroup(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of xdist do: the second finds itself in the leaf of the first."""
    base = settle(tree, monkeypatch)
    first = session(tree, base)
    second = session(tree, base / delegation.LEAF)
    assert first.slot is not None
    assert second.slot is not None
    assert (first.slot.number, second.slot.number) == (0, 1)
    assert second.parts[0].directory.startswith(f"{base}/nsisolate-")
    groups = [one.group(Limits(memory=1 << 26)) for one in (first, second)]
    assert groups[0].directories != groups[1].directories
    first.end(groups[0])
    assert first.close() == []
    assert cgroup_layout.processes(f"{base}/{delegation.LEAF}") == [os.getpid()], "still in use"
    second.end(groups[1])
    assert second.close() == []
    assert not (tree.root.parent / "slots").exists()
    # The last one gives back what the first one took.
    assert cgroup_layout.processes(str(base)) == [os.getpid()]
    assert (base / "cgroup.subtree_control").read_text() == ""
    assert [path for path in base.iterdir() if path.is_dir()] == []


def test_controllers_that_go_with_another_session(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends just when the next one has found all in order, and has made nothing yet."""
    base = settle(tree, monkeypatch)
    first = session(tree, base)
    claim = delegation.claim

    def late(
        unified: cgroup_layout.Hierarchy, wanted: frozenset[str], companions: Sequence[int]
    ) -> delegation.Claim:
        found = claim(unified, wanted, companions)
        assert first.close() == []
        assert cgroup_layout.processes(str(base)) == [os.getpid()]
        return found

    monkeypatch.setattr(delegation, "claim", late)
    with session(tree, base / delegation.LEAF) as second:
        assert not second.errors
        assert cgroup_layout.processes(f"{base}/{delegation.LEAF}") == [os.getpid()]
        second.end(second.group(Limits(memory=1 << 26)))
    assert cgroup_layout.processes(str(base)) == [os.getpid()]
    assert [path for path in base.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("missing", "field"), [("memory.peak", "peak_memory"), ("pids.peak", "pids_peak")]
)
def test_old_kernels_are_sampled(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, missing: str, field: str
) -> None:
    tree.missing.add(missing)
    base = settle(tree, monkeypatch)
    name = missing.split(".", maxsplit=1)[0]
    with session(tree, base) as one:
        group = one.group(Limits(memory=1 << 26, pids=9))
        folder = tree.root / group.directories[0]
        assert getattr(group.usage(), field) is None
        for value in (5, 7, 3):
            (folder / f"{name}.current").write_text(f"{value}\n")
            group.sample()
        assert getattr(group.usage(), field) == 7
        assert group.usage().sampled == {field}
        one.end(group)


def refusal(one: Session, limits: Limits) -> LimitError:
    with pytest.raises(LimitError) as caught:
        one.group(limits)
    return caught.value


def test_controller_that_was_not_delegated(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.controllers = "memory pids"
    base = settle(tree, monkeypatch)
    with session(tree, base) as one:
        one.end(one.group(Limits(memory=1 << 26, pids=5)))
        error = refusal(one, Limits(memory=1 << 26, cpus=1))
    assert (error.controller, error.backend, error.errno) == ("cpu", "v2", errno.EOPNOTSUPP)
    assert error.path == f"{base}/cgroup.controllers"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "Delegate=cpu" in explain(error).mend


def test_cgroup_of_others(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    (base / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    users = {1: os.geteuid() + 1, os.getpid(): os.geteuid()}
    monkeypatch.setattr(delegation, "_user", users.get)
    with session(tree, base) as one:
        error = refusal(one, Limits(memory=1 << 26))
    assert (error.errno, error.path) == (errno.EBUSY, f"{base}/cgroup.procs")
    assert "systemd-run --user --scope -p Delegate=yes" in explain(error).mend
    assert cgroup_layout.processes(str(base)) == [1, os.getpid()], "nobody was moved"


def test_not_delegated(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with session(tree, base) as one:
        error = refusal(one, Limits(pids=4))
    assert (error.errno, error.path) == (errno.EACCES, str(base))
    assert "systemd-run --user --scope" in explain(error).mend


def test_read_only(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    with session(tree, base, writable=False) as one:
        error = refusal(one, Limits(pids=4))
    assert error.errno == errno.EROFS
    assert "read-only" in explain(error).meaning


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    layout = cgroup_layout.Layout(())
    with Session(frozenset({"memory"}), layout=layout, runtime=str(tmp_path / "slots")) as one:
        error = refusal(one, Limits(memory=1 << 26))
    assert (error.backend, error.errno) == ("none", errno.EOPNOTSUPP)
    assert "mounted" in explain(error).meaning


def test_a_cpu_that_is_not_there(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    with session(tree, base) as one:
        error = refusal(one, Limits(cpuset="0-9"))
    assert (error.controller, error.errno, error.path) == ("cpuset", errno.EINVAL, "0-9")
    assert "0-9" in explain(error).meaning


def test_scope_of_systemd(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    scope = base.parent / "nsisolate-1-2.scope"

    def ask(companions: Sequence[int]) -> str:
        assert list(companions) == [7]
        tree.make(str(scope))
        cgroup_layout.write(f"{scope}/cgroup.procs", str(os.getpid()))
        return str(scope)

    monkeypatch.setattr(delegation, "systemd_runs", lambda: True)
    monkeypatch.setattr(delegation, "is_delegated", lambda path: path.endswith(".scope/x"))
    monkeypatch.setattr(delegation, "ask_systemd", ask)
    with session(tree, base, companions=[7]) as one:
        group = one.group(Limits(memory=1 << 26))
        assert group.directories[0].startswith(f"{scope}/nsisolate-")
        one.end(group)


SLICE = "/sys/fs/cgroup/user.slice/user-7.slice"


@pytest.mark.parametrize(
    ("directory", "unit"),
    [
        ("/sys/fs/cgroup", None),
        ("/sys/fs/cgroup/user.slice", None),
        ("/sys/fs/cgroup/system.slice/ci.service", "/sys/fs/cgroup/system.slice/ci.service"),
        ("/sys/fs/cgroup/ci.slice/ci.service/a/b.scope", "/sys/fs/cgroup/ci.slice/ci.service"),
        (f"{SLICE}/session-c1.scope", f"{SLICE}/session-c1.scope"),
        (f"{SLICE}/user@7.service/init.scope", f"{SLICE}/user@7.service/init.scope"),
        (
            f"{SLICE}/user@7.service/app.slice/run-1.scope/nsisolate-runner",
            f"{SLICE}/user@7.service/app.slice/run-1.scope",
        ),
        (f"{SLICE}/user@7.service/app.slice", f"{SLICE}/user@7.service"),
    ],
)
def test_unit_of_a_cgroup(directory: str, unit: str | None) -> None:
    assert delegation.unit_of(directory) == unit


SYSTEMCTL = """#!/bin/sh
echo "$@" >>"{log}"
echo {answer}
"""


@pytest.mark.parametrize(
    ("directory", "marked", "asked"),
    [
        (f"{SLICE}/user@7.service/app.slice/a.scope", "", "--user a.scope"),
        (f"{SLICE}/user@7.service/app.slice/a.scope/below", "", "--user a.scope"),
        # The mark of the user's manager says nothing about what that manager started.
        (f"{SLICE}/user@7.service/app.slice/a.scope", f"{SLICE}/user@7.service", "--user a.scope"),
        ("/sys/fs/cgroup/system.slice/a.service/x", "", "--system a.service"),
        ("/sys/fs/cgroup/system.slice/a.service/x", "/sys/fs/cgroup/system.slice/a.service", ""),
        ("/sys/fs/cgroup/box", "", None),
        ("/sys/fs/cgroup/init.scope", "", None),
        (f"{SLICE}/user@7.service/init.scope", "", None),
    ],
)
def test_whose_unit_is_delegated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    directory: str,
    marked: str,
    asked: str | None,
) -> None:
    """The user's manager makes no marks (systemd 252), so it is asked."""
    command, log = tmp_path / "systemctl", tmp_path / "log"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(delegation, "_is_marked", lambda path: path == marked)
    for answer in ("yes", "no"):
        command.write_text(SYSTEMCTL.format(log=log, answer=answer))
        command.chmod(0o755)
        log.write_text("")
        expected = answer == "yes" if asked else asked is not None
        assert delegation.is_delegated(directory) is expected
        words = log.read_text().split()
        assert " ".join(words[:1] + words[-1:]) == (asked or "")


BUSCTL = """#!/bin/sh
echo "$@" >>"{log}"
case "$*" in {refused}) exit 1;; esac
"""


@pytest.mark.parametrize(
    ("refused", "asked"),
    [("never", ["3 {own} 7 8"]), ("*'au 3'*", ["3 {own} 7 8", "1 {own}"]), ("*", None)],
    ids=["it does", "one has ended", "it refuses"],
)
def test_what_systemd_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, asked: list[str] | None
) -> None:
    command, log = tmp_path / "busctl", tmp_path / "log"
    command.write_text(BUSCTL.format(log=log, refused=refused))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(delegation, "PATIENCE", 2.0)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def moved() -> cgroup_layout.Layout:
        own = tmp_path / log.read_text().splitlines()[-1].split()[7]
        own.mkdir(exist_ok=True)
        (own / "cgroup.subtree_control").touch()
        return cgroup_layout.Layout((cgroup_layout.Hierarchy(2, "/", str(own)),))

    monkeypatch.setattr(cgroup_layout, "find", moved)
    found = delegation.ask_systemd([7, 8])
    lines = log.read_text().splitlines()
    assert all(line.startswith("--user call") and "Delegate b true" in line for line in lines)
    pids = [line.partition("PIDs au ")[2].partition(" Description")[0] for line in lines]
    if asked is not None:
        assert pids == [one.format(own=os.getpid()) for one in asked]
    assert (found is None) == (asked is None)


def test_without_busctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert delegation.ask_systemd() is None


def test_busy_group_is_removed_later(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that answers EBUSY for a second holds up nobody, and goes in the end."""
    base = settle(tree, monkeypatch)
    one = session(tree, base)
    group = one.group(Limits(memory=1 << 26))
    tree.busy["test-1"] = time.monotonic() + 1
    before = time.monotonic()
    one.end(group)
    one.end(one.group(Limits(memory=1 << 26)))
    assert time.monotonic() - before < 0.9
    assert os.path.isdir(f"{one.parts[0].directory}/test-1")
    assert one.close() == []
    assert time.monotonic() - before > 0.9
    assert [path for path in base.iterdir() if path.is_dir()] == []


def test_what_stays_busy_is_told_and_swept(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_nsisolate.cgroups.session.PATIENCE", 0.1)
    base = settle(tree, monkeypatch)
    runtime = str(tree.root.parent / "slots")
    one = session(tree, base)
    one.group(Limits(memory=1 << 26))
    directory = one.parts[0].directory
    tree.busy["test-1"] = time.monotonic() + 60
    assert one.close() == [directory]
    assert sweep(layout=tree.layout(base), runtime=runtime) == []
    tree.busy.clear()
    assert sweep(layout=tree.layout(base), runtime=runtime) == [directory]
    assert not (tree.root.parent / "slots").exists()
    assert sweep(layout=tree.layout(base), runtime=runtime) == []


def test_no_place_for_locks(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = settle(tree, monkeypatch)
    (tree.root.parent / "slots").write_text("in the way")
    with session(tree, base) as one:
        assert refusal(one, Limits(pids=4)).path.endswith("slots")
