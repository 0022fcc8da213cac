"""Why a sandbox can't be built: each failure on each kind of host has its meaning and mend."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.explain import explain, host_facts

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a host says of itself."""

    settings: dict[str, str] = field(default_factory=dict)
    container: bool = False
    filtered: bool = False
    """A seccomp filter refuses unshare as a whole."""
    seccomp: bool = False
    """There is a seccomp filter."""
    podman: bool = False
    profile: str | None = None
    """Of AppArmor, enforced."""


PLAIN = Facts()
DOCKER = Facts(container=True, filtered=True, seccomp=True)
PODMAN = replace(DOCKER, podman=True)
SYSTEMD = Facts(seccomp=True)
STRICT = Facts(profile="strict-python")
UBUNTU = Facts(settings={"kernel.apparmor_restrict_unprivileged_userns": "1"})
DEBIAN = Facts(settings={"kernel.unprivileged_userns_clone": "0"})
NONE_LEFT = Facts(settings={"user.max_user_namespaces": "0"})
NO_NET = Facts(settings={"user.max_net_namespaces": "0"})

UNSHARE = StageError("unshare user and pid", errno.EPERM)
USED_UP = StageError("unshare", errno.ENOSPC)
CASES = [
    (UNSHARE, DOCKER, "seccomp filter", "seccomp=unconfined"),
    (UNSHARE, PODMAN, "seccomp filter", "podman run --security-opt seccomp=unconfined"),
    (UNSHARE, STRICT, "profile strict-python is enforced", "apparmor_parser -r /etc/apparmor.d/x"),
    (
        StageError("unshare user and pid", errno.EACCES),
        STRICT,
        "profile strict-python is enforced",
        "In /etc/apparmor.d/x, give it the rules `userns, ",
    ),
    (StageError("mount", errno.EACCES, "/proc"), STRICT, "profile strict-python", "mount, "),
    (StageError("mount", errno.EPERM, "/proc"), STRICT, "covered", "systempaths=unconfined"),
    (StageError("map ids", errno.EPERM, "/proc/7/uid_map"), STRICT, "profile", "capability, "),
    (
        StageError("make mounts private", errno.EACCES, "/"),
        replace(PODMAN, profile="containers-default-0.62.2", filtered=False),
        "containers-default-0.62.2",
        "run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt u",
    ),
    (
        StageError("mount", errno.EPERM, "/proc"),
        Facts(container=True, podman=True),
        "covered",
        "podman run --security-opt unmask=ALL ...",
    ),
    (
        StageError("set the host name", errno.EPERM),
        replace(PODMAN, filtered=False),
        "security policy",
        "podman run --security-opt seccomp=unconfined --security-opt unmask=ALL ...",
    ),
    (UNSHARE, SYSTEMD, "chroot", "RestrictNamespaces"),
    (UNSHARE, PLAIN, "chroot", "pivot_root"),
    (UNSHARE, Facts(container=True), "chroot", "pivot_root"),
    (UNSHARE, UBUNTU, "AppArmor", "apparmor_restrict_unprivileged_userns=0"),
    (UNSHARE, DEBIAN, "unprivileged_userns_clone = 0", "unprivileged_userns_clone=1"),
    (StageError("map ids", errno.EPERM, "/proc/7/uid_map"), UBUNTU, "AppArmor", "sysctl -w"),
    (StageError("mount", errno.EACCES, "/tmp"), UBUNTU, "AppArmor", "sysctl -w"),
    (StageError("mount", errno.EACCES, "/tmp"), DOCKER, "security policy", "apparmor=unconfined"),
    (StageError("mount", errno.EPERM, "/proc"), DOCKER, "covered", "systempaths=unconfined"),
    (StageError("mount", errno.EPERM, "/proc"), PLAIN, "covered", "procMount: Unmasked"),
    (USED_UP, NONE_LEFT, "user.max_user_namespaces = 0", "max_user_namespaces=15000"),
    (USED_UP, NO_NET, "user.max_net_namespaces = 0", "max_net_namespaces=15000"),
    (USED_UP, PLAIN, "limit", "--ns-jobs"),
    (StageError("fork", errno.EAGAIN), PLAIN, "RLIMIT_NPROC", "ulimit"),
    (StageError("unshare", errno.EINVAL), PLAIN, "kernel", "5.11"),
    (StageError("start the keeper", errno.EPIPE), PLAIN, "keeper", "python -I -S"),
    (StageError("mount", errno.ENODEV, "/tmp"), PLAIN, "No such device", "doctor"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one explanation")
@pytest.mark.parametrize(
    ("error", "facts", "meaning", "mend"),
    CASES,
    ids=[f"{case[0].stage}-{errno.errorcode[case[0].errno]}-{case[3]}" for case in CASES],
)
def test_explanation(
    monkeypatch: pytest.MonkeyPatch, error: StageError, facts: Facts, meaning: str, mend: str
) -> None:
    for module in (explain, host_facts):
        monkeypatch.setattr(module, "read_sysctl", facts.settings.get)
    monkeypatch.setattr(explain, "in_container", lambda: facts.container)
    monkeypatch.setattr(explain, "in_podman", lambda: facts.podman)
    monkeypatch.setattr(explain, "confined_by", lambda: facts.profile)
    monkeypatch.setattr(explain, "profile_file", lambda _: "/etc/apparmor.d/x")
    monkeypatch.setattr(explain, "unshare_filtered", lambda: facts.filtered)
    monkeypatch.setattr(explain, "seccomp_filtered", lambda: facts.seccomp)
    found = explain.explain(error)
    assert meaning in found.meaning
    assert mend in found.mend


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "LINUX", False)
    found = explain.explain(StageError("unshare", errno.ENOSYS))
    assert "Linux" in found.meaning
    assert "--ns-missing" in found.mend


@pytest.mark.parametrize(
    ("label", "profile"),
    [
        ("unconfined\n", None),
        ("python (complain)\n", None),
        ("crun (unconfined)\n", None),
        ("system_u:system_r:unconfined_t:s0\0", None),
        ("/usr/bin/python3.13 (enforce)\n", "/usr/bin/python3.13"),
        ("a profile (enforce)\n", "a profile"),
    ],
)
def test_label_of_apparmor(label: str, profile: str | None) -> None:
    assert host_facts.enforced(label) == profile


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("strict-python", "one"),
        ("strict", None),
        ("a profile", "two"),
        ("/usr/bin/python3.13", "three"),
    ],
)
def test_file_of_a_profile(tmp_path: Path, profile: str, name: str | None) -> None:
    for file, text in {
        "one": "# strict\nabi <abi/4.0>,\nprofile strict-python /usr/bin/python3 {\n}\n",
        "two": 'profile "a profile" flags=(complain) {\n}\n',
        "three": "include <tunables/global>\n/usr/bin/python3.13 {\n}\n",
    }.items():
        (tmp_path / file).write_text(text, "utf-8")
    (tmp_path / "disable").mkdir()
    found = host_facts.profile_file(profile, str(tmp_path))
    assert found == (None if name is None else str(tmp_path / name))


def test_no_file_of_a_profile(tmp_path: Path) -> None:
    assert host_facts.profile_file("any", str(tmp_path / "none")) is None


def test_text_of_a_failed_test() -> None:
    outcome = Outcome(Kind.SANDBOX_FAILED, errno.EPERM, "mount", "/proc")
    text = explain.explain_failure(outcome)
    assert [line.partition(":")[0] for line in text.splitlines()[:2]] == ["why", "mend"]
    assert "--ns-doctor" in text
    assert explain.one_line(StageError("mount", errno.EPERM, "/proc")) == "mount /proc: EPERM"
