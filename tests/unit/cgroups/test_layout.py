"""Where this process stands, on each layout of hierarchies that hosts have."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.cgroups import disk as blockdevice
from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.cgroups import v2
from pytest_nsisolate.core.linux import kernel_files

if TYPE_CHECKING:
    from pathlib import Path

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:33 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
34 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
35 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
36 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
DOCKER = """\
40 39 0:29 /docker/ab /sys/fs/cgroup/memory ro,nosuid master:15 - cgroup cgroup rw,memory
41 39 0:30 /docker/ab /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
"""
UNIT = "/user.slice/user-1000.slice/session-2.scope"


@dataclass(frozen=True)
class Case:
    name: str
    mountinfo: str
    membership: str
    backend: str
    places: dict[str, tuple[int, str] | None]


CASES = [
    Case(
        "hybrid",
        HYBRID,
        f"5:blkio:/\n4:memory:/a b\n2:cpu,cpuacct:/x\n1:name=systemd:{UNIT}\n0::{UNIT}\n",
        "hybrid",
        {
            "memory": (1, "/sys/fs/cgroup/memory/a b"),
            "cpu": (1, "/sys/fs/cgroup/cpu,cpuacct/x"),
            "cpuacct": (1, "/sys/fs/cgroup/cpu,cpuacct/x"),
            "io": (1, "/sys/fs/cgroup/blkio"),
            "freezer": (2, "/sys/fs/cgroup/unified" + UNIT),
        },
    ),
    Case("v2", UNIFIED, f"0::{UNIT}\n", "v2", {"memory": (2, "/sys/fs/cgroup" + UNIT)}),
    Case("v2 in a container", UNIFIED, "0::/\n", "v2", {"cpu": (2, "/sys/fs/cgroup")}),
    Case(
        "v1 in a container that shows its own part",
        DOCKER,
        "2:memory:/docker/ab\n1:pids:/docker/ab/sub\n",
        "v1",
        {
            "memory": (1, "/sys/fs/cgroup/memory"),
            "pids": (1, "/sys/fs/cgroup/pids/sub"),
            "cpu": None,
        },
    ),
    Case("moved out of the namespace", UNIFIED, "0::/../other\n", "none", {"cpu": None}),
    Case(
        "mounted from outside of the namespace",
        "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "0::/\n",
        "none",
        {"memory": None},
    ),
    Case("another container's part", DOCKER, "2:memory:/docker/abc\n", "none", {"memory": None}),
    Case("not mounted", "", "0::/\n", "none", {"memory": None}),
    Case(
        "a name with a space",
        r"30 23 0:26 / /my\040cgroups rw - cgroup2 cgroup2 rw" + "\n",
        "0::/x\n",
        "v2",
        {"memory": (2, "/my cgroups/x")},
    ),
    Case(
        "twice, once read-only",
        UNIFIED.replace(" rw ", " ro ") + UNIFIED.replace("/sys/fs", "/mnt"),
        "0::/\n",
        "v2",
        {"memory": (2, "/mnt/cgroup")},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layout(case: Case) -> None:
    layout = cgroup_layout.parse(case.mountinfo, case.membership)
    assert layout.backend == case.backend
    found = {name: layout.where(name) for name in case.places}
    assert {name: one and (one.version, one.own) for name, one in found.items()} == case.places


def test_read_only_mount_is_known() -> None:
    layout = cgroup_layout.parse(DOCKER, "2:memory:/docker/ab\n1:pids:/docker/ab\n")
    assert [one.writable for one in layout.hierarchies] == [False, True]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("oom 1\noom_kill 2\nodd\nmax max\n")
    assert kernel_files.read_table(f"{tmp_path}/events") == {"oom": 1, "oom_kill": 2}
    assert kernel_files.read_table(f"{tmp_path}/nothing") == {}
    (tmp_path / "limit").write_text("max\n")
    assert kernel_files.read_number(f"{tmp_path}/limit") is None
    (tmp_path / "cgroup.procs").write_text("7\n0\n")
    assert cgroup_layout.processes(str(tmp_path)) == [7, 0]
    with pytest.raises(FileNotFoundError):
        cgroup_layout.write(f"{tmp_path}/new", "1")


class Disk:
    """A host with this root file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, mountinfo: str) -> None:
        self.path = path
        read = kernel_files.read

        def fake(name: str, *, whole: bool = False) -> str | None:
            return mountinfo if name == "/proc/self/mountinfo" else read(name, whole=whole)

        monkeypatch.setattr(blockdevice, "_SYSFS", str(path))
        monkeypatch.setattr(blockdevice, "read", fake)

    def add(self, number: str, name: str, *, scheduler: str = "") -> None:
        folder = self.path / "devices" / name
        (folder / "queue").mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        (folder / "queue" / "scheduler").write_text(scheduler)
        (self.path / number).symlink_to(folder)


def test_partition_is_of_its_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = Disk(monkeypatch, tmp_path, "")
    disk.add("8:0", "sda")
    disk.add("8:2", "sda/sda2")
    (tmp_path / "8:2" / "partition").write_text("2\n")
    assert blockdevice.whole_disk("8:2") == "8:0"
    assert blockdevice.whole_disk("8:0") == "8:0"


@pytest.mark.parametrize(
    "mount",
    [
        "22 1 0:5 / {} rw - tmpfs tmpfs rw",
        "22 1 0:5 / {} rw - nfs4 server:/x rw",
        "22 1 0:5 / {} rw - overlay overlay rw,lowerdir=/a,upperdir=/nowhere/b",
        "",
    ],
)
def test_no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mount: str) -> None:
    Disk(monkeypatch, tmp_path, mount.format("/proc"))
    with pytest.raises(OSError, match="/proc") as caught:
        blockdevice.of_root("/proc")  # one that has no device
    assert caught.value.errno == errno.ENODEV


def test_weights_need_a_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = Disk(monkeypatch, tmp_path, "")
    disk.add("8:0", "sda", scheduler="none [bfq]\n")
    disk.add("8:16", "sdb", scheduler="[none] mq-deadline\n")
    blockdevice.check_weights("8:0", 1)
    with pytest.raises(OSError, match="scheduler") as caught:
        blockdevice.check_weights("8:16", 1)
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("events", "killed"),
    [
        ("max 1\noom_kill 1\n", 1),
        ("max 1\noom_kill 2\noom_group_kill 1\n", 1),
        ("max 1\noom_kill 5\noom_group_kill 1\n", 4),
        # The first was gone before the kernel came to the group.
        ("max 1\noom_kill 1\noom_group_kill 1\n", 1),
        # For want of the host's memory.
        ("max 0\noom_kill 3\noom_group_kill 0\n", 0),
        ("max 3\noom_kill 0\noom_group_kill 0\n", 0),
        ("", None),
    ],
)
def test_killed_by_cgroup2(tmp_path: Path, events: str, killed: int | None) -> None:
    """Of a group that is killed as a whole the kernel counts the first process twice."""
    (tmp_path / "memory.events").write_text(events)
    assert v2.oom_kills(str(tmp_path)) == killed
