"""The plan of a sandbox: which steps it has on which host, in which order."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.linux.syscalls import StageError, mount
from pytest_nsisolate.core.wire import MAX_MESSAGE
from pytest_nsisolate.files.needed_paths import directories_to
from pytest_nsisolate.sandbox import client
from pytest_nsisolate.sandbox.operations import plan, roots
from pytest_nsisolate.sandbox.operations.mounts import (
    Attach,
    Hold,
    MakeDirs,
    MakeFile,
    Propagation,
    Tmpfs,
)
from pytest_nsisolate.sandbox.operations.namespaces import FLAGS, Hostname, IdRange, flags_without
from pytest_nsisolate.sandbox.operations.overlay_layers import Descend, Layer, LayerStage
from pytest_nsisolate.sandbox.operations.plan import (
    Host,
    Operation,
    Plan,
    build_operations,
    topmost,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

USUAL = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/sys/fs/cgroup")


def build(
    *,
    share: tuple[str, ...] = (),
    directories: Iterable[str] = USUAL,
    needed: Iterable[str] = (),
    basetemp: str | None = None,
    temporary: tuple[tuple[str, bool], ...] = (),
    hosts_file: bool = True,
    level: int = 0,
    snapshot: bool = False,
) -> tuple[Operation, ...]:
    """The operations on a host that has these directories, all other things being usual."""
    return build_operations(
        share=share,
        hostname="box",
        tmpfs=1 << 20,
        groups=IdRange(1000, 1000, 1),
        host=Host(frozenset(directories), cgroup2=True, hosts_file=hosts_file, store=True),
        needed=list(needed),
        basetemp=basetemp,
        temporary=temporary,
        level=level,
        snapshot=snapshot,
    )


def described(operations: Iterable[Operation]) -> str:
    return "\n".join(operation.describe() for operation in operations)


def test_usual_host() -> None:
    operations = build()
    assert isinstance(operations[0], Propagation), "before anything can reach the host"
    text = described(operations)
    for part in ("/tmp", "/var/tmp", "/dev/shm", "mqueue", "proc on /proc", "lo up", "box"):
        assert part in text, text
    assert "cgroup2 on /sys/fs/cgroup read-only" in text
    assert "ping_group_range = 1000 1000" in text


@pytest.mark.parametrize(
    ("directories", "missing"),
    [(("/tmp",), "/var/tmp"), (("/tmp",), "/dev/mqueue"), (("/tmp",), "/sys/fs/cgroup")],
)
def test_what_the_host_lacks_is_left_out(directories: tuple[str, ...], missing: str) -> None:
    assert missing not in described(build(directories=directories))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("net", ("lo up", "ip_unprivileged_port_start", "sysfs")),
        ("uts", ("host name", "/etc/hosts")),
        ("ipc", ("mqueue",)),
        ("cgroup", ("cgroup2",)),
    ],
)
def test_shared_namespace(name: str, parts: tuple[str, ...]) -> None:
    """What belongs to a namespace that stays the host's is not touched."""
    own, shared = described(build()), described(build(share=(name,)))
    for part in parts:
        assert part in own
        assert part not in shared


def test_needed_path_is_bound_back() -> None:
    """It is picked up before its parent is hidden, and put back on top."""
    path = "/tmp/venv/lib"
    operations = build(directories=(*USUAL, path), needed=[path])
    order = [
        next(n for n, one in enumerate(operations) if isinstance(one, kind) and one.path == where)
        for kind, where in ((Hold, path), (Tmpfs, "/tmp"), (MakeDirs, path), (Attach, path))
    ]
    assert order == sorted(order)


def test_needed_file_is_bound_back() -> None:
    operations = build(needed=["/tmp/app.pyz"])
    (made,) = [one for one in operations if isinstance(one, MakeFile)]
    assert made.path == "/tmp/app.pyz"


def test_needed_path_below_another() -> None:
    operations = build(directories=(*USUAL, "/tmp/a", "/tmp/a/b"), needed=["/tmp/a/b", "/tmp/a"])
    assert [one.path for one in operations if isinstance(one, Hold) and "/a" in one.path] == [
        "/tmp/a"
    ]


def test_suite_right_in_a_private_directory() -> None:
    """That directory then stays the host's, and the others don't."""
    mounted = [one.path for one in build(needed=["/tmp"]) if isinstance(one, Tmpfs)]
    assert mounted == ["/dev/shm", "/var/tmp"]


@pytest.mark.parametrize(
    ("basetemp", "needed", "kind"),
    [
        ("/tmp/pytest-of-me/pytest-1", (), MakeDirs),
        ("/home/me/base", (), Tmpfs),
        ("/tmp/suite/base", ("/tmp/suite",), Tmpfs),
    ],
)
def test_basetemp(basetemp: str, needed: tuple[str, ...], kind: type) -> None:
    """It is private: a directory of the private /tmp, or a tmpfs over the host's."""
    operations = build(directories=(*USUAL, *needed), needed=needed, basetemp=basetemp)
    (found,) = [one for one in operations if getattr(one, "path", "") == basetemp]
    assert type(found) is kind
    if needed:
        places = [n for n, one in enumerate(operations) if isinstance(one, Attach)]
        assert operations.index(found) > max(places)


def test_topmost() -> None:
    assert topmost(["/a/b", "/a", "/ab", "/a/b/c"]) == ["/a", "/ab"]


def test_over_the_wire() -> None:
    """A plan arrives at the keeper as it was."""
    maps = (IdRange(0, 1000, 1), IdRange(1, 100_000, 65536))
    operations = build(needed=["/tmp/a"], directories=(*USUAL, "/tmp/a"), basetemp="/tmp/base")
    plan = Plan(flags_without(("ipc",)), maps, maps, operations)
    assert Plan.from_wire(json.loads(json.dumps(plan.to_wire()))) == plan


def test_described_plan() -> None:
    plan = Plan(flags_without(("ipc",)), (IdRange(0, 1000, 1),), (), (Hostname("box"),))
    assert plan.describe() == [
        f"unshare {', '.join(name for name in FLAGS if name != 'ipc')}",
        "map uid 0 to 1000 (1 ids)",
        "set the host name to box",
    ]


def test_interpreter_behind_links(tmp_path: Path) -> None:
    """Every directory through which its links lead has to be seen; a loop ends."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "python").symlink_to("../b/python")
    (tmp_path / "b" / "python").symlink_to(tmp_path / "c" / "python3")
    found = [os.path.normpath(path) for path in directories_to(str(tmp_path / "a" / "python"))]
    assert found == [str(tmp_path / name) for name in ("a", "b", "c")]
    (tmp_path / "c" / "python3").symlink_to("python3")
    assert directories_to(str(tmp_path / "c" / "python3"))


@pytest.mark.parametrize(
    ("path", "mounted", "kind"),
    [
        ("/tmp/t", False, MakeDirs),
        ("/tmp/t", True, MakeDirs),
        ("/srv/t", True, Tmpfs),
        ("/srv/t", False, None),
        ("/tmp/suite/t", False, None),
        ("/tmp/suite/t", True, Tmpfs),
    ],
)
def test_temporary(path: str, mounted: bool, kind: type | None) -> None:  # noqa: FBT001 -- of a table
    """Made in a private directory; elsewhere the host's, or private where that is asked for."""
    needed = ["/tmp/suite"]
    operations = build(
        directories=(*USUAL, *needed), needed=needed, temporary=((path, mounted),), basetemp=None
    )
    found = [type(one) for one in operations if getattr(one, "path", "") == path]
    assert found == ([] if kind is None else [kind])


def test_basetemp_in_a_temporary_directory() -> None:
    """As usual: it is made in there, be that private or not."""
    for mounted, kind in ((True, MakeDirs), (False, Tmpfs)):
        operations = build(temporary=(("/srv/t", mounted),), basetemp="/srv/t/base")
        (found,) = [one for one in operations if getattr(one, "path", "") == "/srv/t/base"]
        assert isinstance(found, kind)


@pytest.mark.needs("sandbox")
def test_long_plan() -> None:
    """A plan that takes more than one message reaches the keeper whole."""
    maps = client.IdMaps()
    entries = tuple(
        (f'/{"long name " * 20}{n}\n"\\', "dir", 0o755, -1, -1, "") for n in range(2000)
    )
    ground = (roots.Stage(), roots.Skeleton(0, (("/", "dir", 0o755, -1, -1, ""), *entries)))
    operations = (Propagation(),)
    plan = Plan(flags_without(()), tuple(maps.uids), tuple(maps.gids), operations, ground)
    assert len(json.dumps(plan.to_wire())) > 2 * MAX_MESSAGE
    keeper, built = client.probe(plan)
    built.end()
    keeper.close()


@pytest.mark.needs("sandbox")
def test_ground_that_fails() -> None:
    """It fails each sandbox of its plan, with stage and path; the keeper lives on."""
    maps = client.IdMaps()
    ground = (roots.Cover("/nowhere/at/all", (), directory=True),)
    plan = Plan(flags_without(()), tuple(maps.uids), tuple(maps.gids), (), ground)
    for _ in range(2):
        with pytest.raises(StageError) as caught:
            client.probe(plan)
        assert (caught.value.stage, caught.value.path) == ("hide", "/nowhere/at/all")


def test_layers_of_a_snapshot() -> None:
    """On level 0 a tmpfs bound from the stage, above an overlay; nothing is mounted in a layer."""
    path = "/tmp/venv/lib"
    for level in (0, 1, 2):
        operations = build(
            directories=(*USUAL, path), needed=[path], level=level, snapshot=level < 2
        )
        assert not [one for one in operations if isinstance(one, Tmpfs)]
        stage = next(n for n, one in enumerate(operations) if isinstance(one, LayerStage))
        layers = [n for n, one in enumerate(operations) if isinstance(one, Layer)]
        attach = next(n for n, one in enumerate(operations) if isinstance(one, Attach))
        assert stage < min(layers) < attach
        assert len(layers) == 3
        assert [isinstance(one, Descend) for one in operations].count(True) == (level == 1)
        assert ("overlay" in described(operations)) is (level > 0)
        again = Plan.from_wire(json.loads(json.dumps(Plan(0, (), (), operations).to_wire())))
        assert again.operations == operations


def test_lower_layers() -> None:
    """A test inside two snapshots sees the nearer one's changes over the farther one's files."""
    (step,) = [one for one in Layer("/tmp", 2, 1, 1 << 20, 0o1777).steps() if one.function is mount]
    assert b"lowerdir=1.0:1.1,upperdir=u/1.0,workdir=u/work1" in step.arguments[4]


def test_operations_have_names_of_their_own() -> None:
    """On its way to the keeper a name says which one is meant, also if it is loaded late."""
    late = [name for name, one in vars(roots).items() if hasattr(one, "describe")]
    assert late
    assert not set(late) & set(plan._KINDS)
