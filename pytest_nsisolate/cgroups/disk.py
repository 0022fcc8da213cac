"""The disk of the root file system, which limits of ``io`` are for.

Raises OSError with the path concerned: ENODEV where there is no disk (tmpfs, a
network file system, an overlay whose layers this mount namespace doesn't show).
"""

from __future__ import annotations

import errno
import os

from pytest_nsisolate.core.linux import mountinfo
from pytest_nsisolate.core.linux.kernel_files import read

#: Where the kernel describes block devices, by ``major:minor``.
_SYSFS = "/sys/dev/block"


def of_root(path: str = "/") -> str:
    """Return ``major:minor`` of the whole disk that *path* is on."""
    number = os.stat(path).st_dev
    if os.major(number) == 0:
        # A number without a device: btrfs, overlay, tmpfs. The mount names its source.
        number = _behind(path)
    return whole_disk(f"{os.major(number)}:{os.minor(number)}")


def _behind(path: str) -> int:
    for mount in reversed(mountinfo.parse(read("/proc/self/mountinfo", whole=True) or "")):
        if mount.point != path:
            continue
        if mount.kind == "overlay":
            prefix = "upperdir="
            upper = [one[len(prefix) :] for one in mount.super_options if one.startswith(prefix)]
            number = _device_of(upper[0]) if upper else 0
        else:
            number = _node(mount.source)
        if number:
            return number
        break
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)


def _device_of(directory: str) -> int:
    try:
        number = os.stat(directory).st_dev
    except OSError:
        return 0
    return number if os.major(number) else 0


def _node(source: str) -> int:
    try:
        return os.stat(source).st_rdev if source.startswith("/") else 0
    except OSError:
        return 0


def whole_disk(number: str) -> str:
    """Return the disk of a partition; *number* itself if it is a disk or the like (LVM)."""
    place = f"{_SYSFS}/{number}"
    if read(place + "/partition") is None:
        return number
    disk = read(os.path.dirname(os.path.realpath(place)) + "/dev")
    return disk.strip() if disk else number


def check_weights(number: str, version: int) -> None:
    """Raise EOPNOTSUPP if nothing on this disk goes by weights: not BFQ, and not v2's iocost."""
    path = f"{_SYSFS}/{number}/queue/scheduler"
    if "[bfq]" in (read(path) or ""):
        return
    if version == 2:
        # At the root of the hierarchy only; in a container it can't be seen.
        for line in (read("/sys/fs/cgroup/io.cost.qos") or "").splitlines():
            if line.split(" ")[0] == number and "enable=1" in line.split(" "):
                return
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
