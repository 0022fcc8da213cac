"""Explain why a limit can't be held here, or an event can't be counted."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.kernel_files import read_sysctl

from .host_facts import DENIED, Explanation, Row, is_at

if TYPE_CHECKING:
    from pytest_nsisolate.core.linux.syscalls import StageError


def _counters(error: StageError) -> Explanation | None:
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return Explanation(
            "The processor doesn't count this, or the virtual machine doesn't show it.",
            "Nothing on this machine; a virtual machine needs a virtual PMU.",
        )
    if error.errno in (*DENIED, errno.ENOSYS):
        level = read_sysctl("kernel.perf_event_paranoid")
        return Explanation(
            f"This user may not count it: kernel.perf_event_paranoid = {level}, or seccomp.",
            "sudo sysctl -w kernel.perf_event_paranoid=1; Docker: --cap-add PERFMON",
        )
    return None


_SCOPE = "systemd-run --user --scope -p Delegate=yes pytest ..."
_CONTROLLERS_OF_USERS = (
    "sudo systemctl edit user@.service, with the lines `[Service]` and `Delegate=cpu cpuset io "
    "memory pids`; log in again"
)


def _limit(error: StageError) -> Explanation | None:
    """Explain a `limits.LimitError`; its stage is ``limit CONTROLLER by cgroup BACKEND``."""
    controller, backend = error.stage.split(" ")[1], error.stage.rpartition(" ")[2]
    if error.errno == errno.EINVAL and controller == "cpuset":
        return Explanation(
            f"The tests may use the CPUs {_cpus()} here, and {error.path} names others.",
            "Name CPUs that are there.",
        )
    if error.errno == errno.EROFS:
        return Explanation(
            "The cgroup file system is mounted read-only, as container engines and sandboxes do.",
            "docker run --privileged --cgroupns=private ...; Kubernetes: a privileged container",
        )
    if controller == "devices":
        return _limit_of_devices(error, backend)
    if controller == "io" and error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
        return _limit_of_io(error)
    if error.errno == errno.EOPNOTSUPP:
        return _no_controller(error, controller, backend)
    return _refused(error, controller, backend)


def _cpus() -> str:
    try:
        return ",".join(str(number) for number in sorted(os.sched_getaffinity(0)))
    except OSError:
        return "(unknown)"


def _limit_of_devices(error: StageError, backend: str) -> Explanation | None:
    if error.path.startswith("/dev"):
        return Explanation(
            f"{error.path} can't be allowed: {os.strerror(error.errno)}.",
            "Name device nodes that exist.",
        )
    return _refused(error, "devices", backend)


def _limit_of_io(error: StageError) -> Explanation | None:
    if error.path.endswith("/scheduler"):
        return Explanation(
            "io_weight needs a disk that goes by weights, and this one neither has the scheduler "
            "BFQ nor (cgroup v2) io.cost.",
            f"echo bfq | sudo tee {error.path}",
        )
    if error.errno == errno.ENODEV:
        return Explanation(
            "The root file system is on no disk that this process can see (a tmpfs, a network "
            "file system, a container's overlay), so there is nothing to limit.",
            "Leave out io=, or run where / is on a disk.",
        )
    return _no_controller(error, "io", error.stage.rpartition(" ")[2])


def _no_controller(error: StageError, controller: str, backend: str) -> Explanation | None:
    if backend == "none":
        return Explanation(
            "No cgroup file system is mounted here, or not the part of it that this process is in.",
            "sudo mount -t cgroup2 none /sys/fs/cgroup; in a container: --cgroupns=private",
        )
    if backend == "v2" and error.path.endswith("/cgroup.controllers"):
        mend = "in a container, have its engine hand it on; as root: echo +NAME into the "
        mend += "cgroup.subtree_control of the cgroups above"
        return Explanation(
            f"The controller {controller} is not handed on to {os.path.dirname(error.path)}; a "
            "user of systemd has memory and pids, newer ones cpu, and others when they are told.",
            mend if os.geteuid() == 0 else _CONTROLLERS_OF_USERS,
        )
    return Explanation(
        f"This kernel has no controller {controller}, or it is switched off (see /proc/cgroups).",
        "Use a kernel with it, or remove cgroup_disable= from the kernel's command line.",
    )


def _refused(error: StageError, controller: str, backend: str) -> Explanation | None:
    if error.errno == errno.EBUSY and backend == "v2":
        return Explanation(
            "Processes of other users are in the cgroup of this one, and cgroup v2 limits only "
            "what stands below a cgroup without processes.",
            _SCOPE,
        )
    if error.errno in DENIED and backend == "v2":
        return Explanation(
            "The cgroup of this process belongs to somebody else, and there is no systemd of this "
            "user's that would give one.",
            f"{_SCOPE}   (in a login session; `loginctl enable-linger` gives one without)",
        )
    if error.errno in DENIED:
        group = controller if controller != "io" else "blkio"
        return Explanation(
            "With cgroup v1 only root may make cgroups, or who was given a directory.",
            f"sudo cgcreate -a $USER -t $USER -g {group}:tests && cgexec -g {group}:tests pytest "
            "...   (the same for each controller; or boot with systemd.unified_cgroup_hierarchy=1)",
        )
    if error.errno == errno.ENOENT:
        return Explanation(
            "The cgroup, or a file in it, is not there: this kernel is too old for it, or "
            "something removed the cgroups of this session while it ran.",
            "Run the tests again; if it stays, use a newer kernel.",
        )
    return None


#: From the most to the least special; see `explain`.
ROWS: tuple[Row, ...] = (
    (is_at("limit "), _limit),
    (is_at("count "), _counters),
)
