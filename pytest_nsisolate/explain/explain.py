"""Explain why a sandbox can't be built here, and the fix: one table for errors and doctor.

A failure is a stage, an errno and a path (`errors.StageError`). What it means
depends on what the host's settings say, so the explanation looks at them; it
changes nothing.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.kernel_files import read_sysctl
from pytest_nsisolate.core.linux.syscalls import LINUX, StageError
from pytest_nsisolate.core.outcome import Outcome, errno_name
from pytest_nsisolate.spec.holds import Mode
from pytest_nsisolate.spec.parsing import written

from . import files as file_explanations
from . import limits as limit_explanations
from . import network as network_explanations
from .host_facts import (
    DENIED,
    Explanation,
    Row,
    confined_by,
    in_container,
    in_podman,
    is_at,
    profile_file,
    seccomp_filtered,
    unshare_filtered,
    used_up,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nsisolate.spec.holds import Refusal

_DOCKER = (
    "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined ..."
)


#: How a stage ends at which the test was running.
WHILE_IT_RAN = "while the test ran"


def explain(error: StageError) -> Explanation:
    """Explain *error*: its meaning on this host, and the fix."""
    if not LINUX:
        return Explanation(
            "Namespaces are a feature of Linux, and this is another system.",
            "Run the tests on Linux, or choose --ns-missing=fork (a forked process without "
            "namespaces), skip or run.",
        )
    for fits, make in _TABLE:
        if fits(error):
            found = make(error)
            if found is not None:
                return found
    return Explanation(
        f"The kernel refused it: {os.strerror(error.errno)}.",
        "Run `python -m pytest_nsisolate doctor`, and report what it prints together with this.",
    )


def _no_time_namespace(error: StageError) -> Explanation | None:
    if error.errno not in (errno.EINVAL, errno.ENOSYS):
        return None
    return Explanation(
        "This kernel has no time namespaces, which clock= needs: it was built without "
        "CONFIG_TIME_NS, or is older than 5.6.",
        "Use a kernel with CONFIG_TIME_NS, or leave out clock=.",
    )


def _clock(error: StageError) -> Explanation | None:
    if error.errno != errno.ERANGE:
        return None
    uptime = time.clock_gettime(time.CLOCK_MONOTONIC)
    return Explanation(
        "Moved by that much CLOCK_MONOTONIC would be below zero, or more than 146 years; here it "
        f"stands at {uptime:.0f} s, counted from the start of this machine.",
        f"Give a clock= above -{uptime:.0f}.",
    )


def _no_user_namespace(error: StageError) -> Explanation | None:
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        return Explanation(
            "This kernel was built without a namespace that is needed, or is older than 5.11.",
            "Use a kernel with CONFIG_USER_NS and the other namespaces, Linux 5.11 or newer.",
        )
    if read_sysctl("kernel.unprivileged_userns_clone") == "0":
        return Explanation(
            "This host reserves user namespaces to root: kernel.unprivileged_userns_clone = 0.",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        )
    if read_sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return _apparmor(error)
    if unshare_filtered():
        return Explanation(
            "A seccomp filter answers unshare with an error, as container engines set it up.",
            f"{_engine()}   (or a seccomp profile that allows unshare, setns, mount and umount2)",
        )
    if (found := _profile(error)) is not None:
        return found
    # What is left of the reasons that unshare(2) gives for EPERM.
    chroot = "the process runs in a chroot, where the kernel makes no user namespaces"
    leave = "run it outside the chroot, or enter the tree by pivot_root (bwrap, systemd-nspawn)"
    if seccomp_filtered():
        return Explanation(
            f"Either {chroot}, or a seccomp filter forbids that one kind of namespace, as "
            "systemd's RestrictNamespaces= does.",
            f"For a chroot: {leave}. For a service of systemd: RestrictNamespaces=no.",
        )
    return Explanation(
        f"No setting of this host and no seccomp filter forbids it, so most likely {chroot}.",
        f"{leave[0].upper()}{leave[1:]}.",
    )


def _engine() -> str:
    """Return the command that starts a container in which sandboxes can be built.

    Podman's own filter of system calls allows unshare and mount, but not sethostname.
    """
    if not in_podman():
        return _DOCKER
    wanted = ["unmask=ALL"]
    if confined_by() is not None:
        wanted.insert(0, "apparmor=unconfined")
    if seccomp_filtered():
        wanted.insert(0, "seccomp=unconfined")
    return f"podman run {' '.join(f'--security-opt {one}' for one in wanted)} ..."


def _profile(error: StageError) -> Explanation | None:
    name = confined_by()
    if name is None:
        return None
    meaning = f"The AppArmor profile {name} is enforced on this process, and does not allow it."
    if in_container():
        return Explanation(meaning, _engine())
    path = profile_file(name)
    load = f"sudo apparmor_parser -r {path or '/etc/apparmor.d/...'}"
    return Explanation(
        meaning,
        f"In {path or 'the file of this profile'}, give it the rules `userns, capability, mount, "
        "umount, pivot_root, network,` and take out what denies them; then: " + load,
    )


def _apparmor(error: StageError) -> Explanation | None:
    if read_sysctl("kernel.apparmor_restrict_unprivileged_userns") != "1":
        return None
    return Explanation(
        "AppArmor lets a process without a profile make a user namespace, but gives it no rights "
        "in there: kernel.apparmor_restrict_unprivileged_userns = 1 (Ubuntu 24.04 and later).",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0   (or an AppArmor profile "
        "with `userns,` for the Python interpreter)",
    )


def _proc(error: StageError) -> Explanation | None:
    return Explanation(
        "Parts of /proc are covered here, as container engines do, and the kernel then mounts no "
        "fresh /proc for a new pid namespace.",
        _engine()
        if in_podman()
        else "Docker: --security-opt systempaths=unconfined; Podman: --security-opt "
        "seccomp=unconfined --security-opt unmask=ALL; Kubernetes: procMount: Unmasked with "
        "hostUsers: false",
    )


def _denied(error: StageError) -> Explanation | None:
    if in_container() or seccomp_filtered():
        return Explanation("The container's security policy denies it.", _engine())
    return None


def _helper_ended(error: StageError) -> Explanation | None:
    met = "it met this error" if error.errno != errno.EPIPE else "it was killed"
    return Explanation(
        "Keeper and template are the helper processes of a session: one builds sandboxes, of the "
        f"other each test process is a fork. One of them ended, and its tests with it; {met}.",
        "Look for what kills processes on this host: the kernel for want of memory (dmesg says "
        "so), or a clean-up by name or by user. Run the test again.",
    )


def _no_descriptors(error: StageError) -> Explanation | None:
    return Explanation(
        "There are no more files to be had: the process's limit on open files (RLIMIT_NOFILE), "
        "or the system's (fs.file-max), is reached.",
        "Raise `ulimit -n`, lower --ns-jobs, or look for what leaves files open in the runner: "
        "plugins, and tests that are not isolated.",
    )


def _no_memory(error: StageError) -> Explanation | None:
    return Explanation(
        "The kernel had no memory for it.",
        "Free memory, or lower --ns-jobs; `dmesg` may say what takes it, and a limit of a control "
        "group that pytest itself runs in is a limit for all its tests together.",
    )


def _keeper(error: StageError) -> Explanation | None:
    return Explanation(
        "The keeper, a helper process that is started with this interpreter, ended at once.",
        "Its message stands on standard error, above; check that the interpreter can be started "
        "with `python -I -S -c pass` and that the package's files can be read.",
    )


#: How stages begin at which a user namespace's rights are made use of.
_BUILDING = ("map ids", "make mounts", "mount", "bind", "set", "bring")

#: From the most to the least special; the first that fits and explains wins.
_TABLE: tuple[Row, ...] = (
    *network_explanations.ROWS,
    *file_explanations.ROWS,
    *limit_explanations.ROWS,
    (is_at("unshare", "fork", errnos=(errno.ENOSPC, errno.EAGAIN, errno.ENOMEM)), used_up),
    (is_at("unshare time"), _no_time_namespace),
    (is_at("set the clock"), _clock),
    (is_at("unshare"), _no_user_namespace),
    (is_at(*_BUILDING, errnos=DENIED), _apparmor),
    (is_at(*_BUILDING, errnos=(errno.EACCES,)), _profile),  # covered mounts give EPERM
    (lambda error: error.path == "/proc" and error.errno in DENIED, _proc),
    (is_at(*_BUILDING, errnos=DENIED), _profile),
    (is_at(*_BUILDING, errnos=DENIED), _denied),
    (is_at("the end of the"), _helper_ended),
    (is_at("start the keeper", errnos=(errno.EPIPE,)), _keeper),
    (is_at("", errnos=(errno.EMFILE, errno.ENFILE)), _no_descriptors),
    (is_at("", errnos=(errno.ENOMEM, errno.ENOBUFS)), _no_memory),
)


def explain_failure(outcome: Outcome) -> str:
    """Return the lines below the headline of a test whose sandbox failed."""
    found = explain(StageError(outcome.detail, outcome.number, outcome.path))
    ran = "was running" if outcome.detail.endswith(WHILE_IT_RAN) else "did not run"
    return (
        f"why: {found.meaning}\n"
        f"mend: {found.mend}\n"
        f"The test {ran}. `pytest --ns-doctor` shows what this host can do; --ns-missing "
        "{skip,fork,run} chooses another way for tests that can't be isolated here."
    )


def explain_refusal(error: StageError, refusals: Sequence[tuple[Refusal, str]], mode: Mode) -> str:
    """Return the failure text of a test that asks for what *mode* can't hold.

    Args:
        error: why the test can't be isolated here.
        refusals: its keys that are not held, each with the place where it stands.
    """
    keys = [written(one.key, one.value) for one, _ in refusals]
    option = f"--ns-missing={mode.value}"
    found = explain(error)
    lines = [f"SANDBOX FAILED: {option} can't hold {', '.join(keys)}"]
    lines.append(
        f"The test did not run. It can't be isolated here ({one_line(error)}), and {option} runs "
        f"such tests {_MODES[mode]}. These keys can't be held there:"
    )
    for key, (one, source) in zip(keys, refusals, strict=True):
        lines.append(f"  {key}{f' ({source})' if source else ''}: {one.why}")
    lines.append(f"Fix: let this host isolate the test. {found.meaning} {found.mend}")
    lines.append("Or leave these keys out, or skip such tests with --ns-missing=skip.")
    return "\n".join(lines)


_MODES = {
    Mode.FORK: "in a forked process without namespaces",
    Mode.RUN: "in pytest's own process",
}


def one_line(error: StageError) -> str:
    """Return the stage, path and errno in one line, for a header or a skip reason."""
    where = f" {error.path}" if error.path else ""
    return f"{error.stage}{where}: {errno_name(error.errno)}"
