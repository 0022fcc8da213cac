"""What the doctor says where sandboxes can't be built, and that its mend mends, as printed.

`guest.py` beside it runs it as root in a guest, and says by NSISOLATE_VM which one it is:

    no-namespaces  user.max_user_namespaces=0
    apparmor       profiles that are enforced on the interpreter, and deny a part of it
    container      in containers that Podman starts, with its own restrictions and with Docker's

Here a test makes the obstacle, and takes it off by nothing but what was printed. The runs are by
a user without privileges, in containers by root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from helpers.run import Result, Run

SITUATION = os.environ.get("NSISOLATE_VM", "")

SUITE = """
    @pytest.mark.isolated
    def test_isolated(record_property):
        record_property("pid", os.getpid())
        record_property("parent", os.getppid())
        record_property("net", os.readlink("/proc/self/ns/net"))
        record_property("mnt", os.readlink("/proc/self/ns/mnt"))

    def test_plain(record_property):
        record_property("pid", os.getpid())
        record_property("net", os.readlink("/proc/self/ns/net"))
        record_property("mnt", os.readlink("/proc/self/ns/mnt"))
"""


class Obstacle:
    """What keeps sandboxes from being built, and what has to be said about it."""

    name: str
    situation: str
    stage: str
    """The step that fails."""
    error: str
    """The errno that the kernel gives."""
    meaning: str
    """A part of it."""

    def made(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """Put it in the way for as long as the context lasts."""
        raise NotImplementedError

    def prefix(self, path: Path) -> list[str]:
        """The command that runs its arguments behind it, in that directory."""
        return []

    def mend(self, printed: str) -> None:
        """Do what is printed; raises unless this is a step that a person can follow."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Setting(Obstacle):
    """A setting of the kernel."""

    name: str = "max_user_namespaces"
    situation: str = "no-namespaces"
    stage: str = "unshare user and pid"
    error: str = "ENOSPC"
    meaning: str = "This host allows no user namespaces: user.max_user_namespaces = 0."
    path: Path = Path("/proc/sys/user/max_user_namespaces")

    @contextlib.contextmanager
    def made(self, path: Path) -> Iterator[None]:
        before = self.path.read_text("ascii")
        self.path.write_text("0", "ascii")
        try:
            yield
        finally:
            self.path.write_text(before, "ascii")

    def mend(self, printed: str) -> None:
        as_root(printed)


@dataclass(kw_only=True)
class Profile(Obstacle):
    """An AppArmor profile for the interpreter that denies one thing."""

    denied: str
    name: str = field(init=False)
    situation: str = "apparmor"
    stage: str
    error: str
    meaning: str = "The AppArmor profile strict-python is enforced on this process"
    path: Path = Path("/etc/apparmor.d/strict-python")

    def __post_init__(self) -> None:
        self.name = self.denied.replace(" ", "-")

    @property
    def rule(self) -> str:
        """The rule that is in the way."""
        return f"deny {self.denied},"

    @contextlib.contextmanager
    def made(self, path: Path) -> Iterator[None]:
        program = os.path.realpath(sys.executable)
        rules = f"  allow all,\n  {self.rule}\n"
        self.path.write_text(
            f"abi <abi/4.0>,\nprofile strict-python {program} {{\n{rules}}}\n", "ascii"
        )
        command(["apparmor_parser", "-r", str(self.path)])
        try:
            yield
        finally:
            command(["apparmor_parser", "-R", str(self.path)])
            self.path.unlink()

    def mend(self, printed: str) -> None:
        found = re.fullmatch(
            r"In (\S+), give it the rules `(.+)` and take out what denies them; then: (.+)", printed
        )
        assert found is not None, printed
        path = Path(found[1])
        text = path.read_text("ascii")
        path.write_text(text.replace(self.rule, found[2]), "ascii")
        as_root(found[3])


#: Docker's filter, as far as it is about namespaces: in its words for an OCI runtime.
DOCKER = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [
        {
            "names": [
                *("unshare", "setns", "mount", "umount2", "pivot_root"),
                *("open_tree", "move_mount", "fsopen", "fsmount", "mount_setattr"),
            ],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
        },
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "args": [
                {
                    "index": 0,
                    "value": 0x10000000,
                    "valueTwo": 0x10000000,
                    "op": "SCMP_CMP_MASKED_EQ",
                }
            ],
        },
    ],
}


@dataclass(kw_only=True)
class Container(Obstacle):
    """A container of Podman's, over the guest's own files."""

    name: str
    situation: str = "container"
    stage: str
    error: str
    meaning: str
    filter: Mapping[str, object] | None = None
    """Of system calls, instead of Podman's."""
    given: tuple[str, ...] = ()
    """To Podman, also after the mend."""
    options: list[str] = field(default_factory=list, init=False)

    @contextlib.contextmanager
    def made(self, path: Path) -> Iterator[None]:
        self.options = []
        if self.filter is not None:
            file = path / "filter.json"
            file.write_text(json.dumps(self.filter), "ascii")
            self.options = [f"--security-opt=seccomp={file}"]
        yield

    def prefix(self, path: Path) -> list[str]:
        # The storage is not on the file system that the container's overlay is of.
        podman = ["podman", "--root=/run/storage", "--log-level=error"]
        there = [f"--volume={path}:{path}", f"--workdir={path}"]
        run = ["run", "--rm", "--network=none", "--env-host", *there, *self.given, *self.options]
        return [*podman, *run, "--rootfs", "/:O"]

    def mend(self, printed: str) -> None:
        found = re.search(r"podman run ((?:--security-opt \S+ )+)\.\.\.", printed, re.IGNORECASE)
        assert found is not None, printed
        self.options = found[1].split()


OBSTACLES: tuple[Obstacle, ...] = (
    Setting(),
    Profile(denied="userns", stage="unshare user and pid", error="EACCES"),
    Profile(denied="mount", stage="make mounts slaves", error="EACCES"),
    Profile(denied="capability sys_admin", stage="unshare user and pid", error="EPERM"),
    Container(
        name="podman",
        stage="unshare user and pid",
        error="EACCES",
        meaning="The AppArmor profile containers-default-",
    ),
    Container(
        name="podman-without-apparmor",
        stage="mount /proc",
        error="EPERM",
        meaning="Parts of /proc are covered here",
        given=("--security-opt=apparmor=unconfined",),
    ),
    Container(
        name="docker",
        stage="unshare user and pid",
        error="EPERM",
        meaning="A seccomp filter answers unshare with an error",
        filter=DOCKER,
    ),
)


def command(words: list[str]) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


def as_root(line: str) -> None:
    """Run a line as printed, but for the sudo: there is none, and this is root."""
    assert line.startswith("sudo "), line
    command(shlex.split(line)[1:])


@dataclass(frozen=True)
class Behind:
    """Runs behind an obstacle."""

    obstacle: Obstacle
    run: Run

    def __call__(self, *args: str) -> Result:
        self.run.tests(SUITE)
        return self.run(*args, prefix=self.obstacle.prefix(self.run.path))

    def explained(self, text: str) -> None:
        """The text names the step, the errno and what it means."""
        for part in (self.obstacle.stage, self.obstacle.error, self.obstacle.meaning):
            assert part in text, f"{part!r} is not said\n{text}"


@pytest.fixture(
    params=[one for one in OBSTACLES if one.situation == SITUATION], ids=lambda one: one.name
)
def behind(request: pytest.FixtureRequest) -> Iterator[Behind]:
    """Each obstacle of this situation."""
    obstacle: Obstacle = request.param
    fixture = "run" if obstacle.situation == "container" else "run_as_nobody"
    run: Run = request.getfixturevalue(fixture)
    with obstacle.made(run.path):
        yield Behind(obstacle, run)


def test_there_are_obstacles() -> None:
    """Without one every other test here would be skipped."""
    assert SITUATION in {one.situation for one in OBSTACLES}
    assert os.geteuid() == 0


def test_error(behind: Behind) -> None:
    """By default the isolated test is an error that explains; the other one runs."""
    result = behind()
    assert result.verdicts == {"test_isolated": "error", "test_plain": "passed"}, str(result)
    assert result.ret == 1
    text = result.of("test_isolated", "setup").text
    assert text.startswith("SANDBOX FAILED at "), text
    behind.explained(text)


def test_skip(behind: Behind) -> None:
    """It is skipped, and the reason names step and errno."""
    result = behind("--ns-missing=skip", "-rs")
    assert result.verdicts == {"test_isolated": "skipped", "test_plain": "passed"}, str(result)
    assert result.ret == 0
    (phase,) = [one for one in result.phases if one.outcome == "skipped"]
    assert behind.obstacle.stage in phase.text
    assert behind.obstacle.error in phase.text


def test_fork(behind: Behind) -> None:
    """It runs in a process of its own, in the namespaces of the runner."""
    result = behind("--ns-missing=fork").expect(passed=2)
    assert result.value("test_isolated", "pid") != result.value("test_plain", "pid")
    same_namespaces(result, same=True)


def test_run(behind: Behind) -> None:
    """It runs like any other test."""
    result = behind("--ns-missing=run").expect(passed=2)
    assert result.value("test_isolated", "pid") == result.value("test_plain", "pid")
    same_namespaces(result, same=True)


def test_the_mend_mends(behind: Behind) -> None:
    """The doctor names the obstacle; once its mend is applied, it finds none, and tests isolate."""
    verdict = behind("--ns-doctor")
    assert verdict.ret == 1, str(verdict)
    assert "Traceback" not in verdict.out + verdict.err
    behind.explained(verdict.out)
    (printed,) = re.findall(r"^  mend +(.+)$", verdict.out, re.MULTILINE)
    behind.obstacle.mend(printed)
    verdict = behind("--ns-doctor")
    assert verdict.ret == 0, f"after: {printed}\n{verdict}"
    result = behind().expect(passed=2)
    assert result.value("test_isolated", "parent") == 0  # of a pid namespace of its own
    same_namespaces(result, same=False)


def same_namespaces(result: Result, *, same: bool) -> None:
    """Whether both tests ran with the same mounts and network."""
    for name in ("net", "mnt"):
        both = {result.value(test, name) for test in ("test_isolated", "test_plain")}
        assert (len(both) == 1) is same, f"{name}\n{result}"
