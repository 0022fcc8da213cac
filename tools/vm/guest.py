"""Run tests in Debian guests, of which this host is none: what ``tox -e vm`` does.

The guest is booted by a script that is no part of this project: ``guest.sh`` of a directory
beside the checkout, or what NSISOLATE_GUEST names. Images are built once and kept in a cache
directory (VMDIR, else ``~/.cache/nsisolate-vm``); the guest has no network and no KVM, and
Python in it is 5 to 8 times slower than outside.

Where a guest can't run, this says what is missing and ends with 0; a test that fails in the
guest, an image that can't be built, a guest that doesn't answer end with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "pytest",
    "pyroute2",
    "filelock",
    "hypothesis",
    "pytest-xdist",
    "pytest-rerunfailures",
)
"""What the guest's Python gets from PyPI."""
HARDENED = "trixie"
"""The suite whose kernel lets AppArmor decide about user namespaces (Linux 6.7)."""
DEBS = ("git",)
"""Debian packages that a guest has beyond those of the script."""
DEBS_OF = {HARDENED: ("apparmor", "crun", "podman")}
"""More of them, by suite."""
NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "zstd": "zstd",
    "xz": "xz-utils",
    "cpio": "cpio",
    "depmod": "kmod",
    "busybox": "busybox-static",
}
"""Commands that the script takes, and the Debian packages that have them."""
NOT_COPIED = (".git", ".tox", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist")
NOISE = re.compile(r"@@VMRUN|\[ *\d+\.\d+\] |Powering off")
STARTED = "@@VMRUN payload"
SUMMARY = re.compile(r"=* ?(\d+ (?:passed|failed|skipped|error).* in [\d.]+s.*?) ?=*$")

EXPORTS = """
export PYTHONDONTWRITEBYTECODE=1 PYTEST_ADDOPTS='-p no:cacheprovider' NSISOLATE_DEADLINE=180
export NSISOLATE_GONE_WITHIN=20 NSISOLATE_KILLS=2 NSISOLATE_GROWTH_TESTS=300
"""
SETUP = f"""{EXPORTS}
dmesg -n 1
dd if=/dev/zero of=/swap bs=1M count=256 status=none; chmod 600 /swap
/sbin/mkswap /swap >/dev/null; /sbin/swapon /swap
chmod 755 /home/tester; cd /home/tester/work
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$(sed -n 's/^version = "\\(.*\\)"/\\1/p' pyproject.toml)
info=$site/pytest_nsisolate-$version.dist-info; mkdir $info
ln -s $PWD/pytest_nsisolate $site/
printf 'Metadata-Version: 2.1\nName: pytest-nsisolate\nVersion: %s\n' $version >$info/METADATA
for command in pytest:pytest nsisolate:pytest_nsisolate.cli.main; do
    script=/usr/local/bin/${{command%:*}}
    printf '#!/usr/bin/python3\nimport sys\nfrom %s import main\nsys.exit(main())\n' \
        ${{command#*:}} >$script
    chmod 755 $script
done
printf '[pytest11]\nnsisolate = pytest_nsisolate.plugin.hooks\n' >$info/entry_points.txt
"""
"""As root, before anything: swap, so that it shows whether a limit of memory goes around it, and
the checkout as an installed package."""
QUICK = "python3 -m pytest -q -rs"
PYTEST = f"{QUICK} -o faulthandler_timeout={{timeout}}"
TESTS = f"{PYTEST.format(timeout=100)} tests/vm --ignore=tests/vm/test_doctor.py"
DOCTOR = f"{PYTEST.format(timeout=200)} tests/vm/test_doctor.py"
PART = "tests/behaviour/isolation/test_isolation.py"
"""What stands for the whole suite, which takes an hour or two: see docs/testing.md."""
NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/nonexistent"
HYBRID = "systemd.unified_cgroup_hierarchy=0"


@dataclass(frozen=True)
class Situation:
    """Who runs which tests in which guest.

    ``arguments`` are the kernel's; with them a guest is booted instead of resumed. ``suite`` is
    the Debian that it takes, where it is not all the same; ``seconds`` is how long it may take.
    """

    name: str
    title: str
    command: str = TESTS
    as_root: bool = False
    arguments: str = ""
    by_default: bool = True
    suite: str = ""
    seconds: int = 900
    more: str = ""
    """The command that takes the arguments of ``--tests``."""


MUST = "env NSISOLATE_MUST_WORK=sandbox,unprivileged"
SUITE = PYTEST.format(timeout=600)
MORE = "python3 -m pytest -v -n 2 --reruns 1 -rfERs -o faulthandler_timeout=900"
"""With the arguments of ``--tests``. Each test's line is printed as it ends: with all of them an
hour or two lie between the first and the last."""
GROUPS = f"env NSISOLATE_MUST_WORK=root,cgroup1 {QUICK} tests/unit/cgroups/test_group.py"
SITUATIONS = (
    Situation("root", "root, in a service of the system's", as_root=True),
    Situation(
        "delegated",
        "a user, in a scope of systemd-run --user",
        f"systemd-run --user --scope -q -p Delegate=yes {TESTS}",
    ),
    Situation("asked", "a user, whose systemd is asked for a scope"),
    Situation("refused", "a user without systemd", f"{NOBODY} {TESTS} -k refusal", as_root=True),
    Situation("hybrid", "root, cgroup v1 and v2", GROUPS, as_root=True, arguments=HYBRID),
    Situation(
        "v1",
        "root, cgroup v1 alone",
        GROUPS,
        as_root=True,
        arguments=f"{HYBRID} systemd.legacy_systemd_cgroup_controller=1",
        by_default=False,
    ),
    Situation(
        "suite-root",
        "root, the tests of any host",
        f"{MUST},root,cgroup2 {SUITE} {PART}",
        as_root=True,
        seconds=1800,
        more=f"{MUST},root,cgroup2 {MORE}",
    ),
    Situation(
        "suite-user",
        "a user under systemd, the tests of any host",
        f"{MUST} {SUITE} {PART}",
        seconds=1800,
        more=f"{MUST} {MORE}",
    ),
    Situation("no-namespaces", "no user namespaces: the doctor", DOCTOR, as_root=True),
    Situation(
        "apparmor",
        "a profile that denies user namespaces: the doctor",
        DOCTOR,
        as_root=True,
        suite=HARDENED,
    ),
    Situation(
        "container",
        "root in containers: the doctor",
        DOCTOR,
        as_root=True,
        suite=HARDENED,
    ),
)


class Failed(Exception):
    """The guest can't be had though all that it takes is there."""


@dataclass(frozen=True)
class Guest:
    """The script, its cache, and the names of the images there."""

    script: Path
    cache: Path
    suite: str

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the script; nothing that it started outlives this."""
        process = subprocess.Popen(
            [str(self.script), *words],
            env={**os.environ, "VMDIR": str(self.cache), "EXTRA_DEBS": ",".join(self.debs)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            out, _ = process.communicate()
        finally:
            if process.returncode is None:
                # mmdebstrap takes its mounts of /proc and /sys down when it is asked to end.
                signal_session(process.pid, signal.SIGTERM)
                end = time.monotonic() + 10
                while set(of_session(process.pid)) - {process.pid} and time.monotonic() < end:
                    time.sleep(0.1)
            signal_session(process.pid, signal.SIGKILL)
            process.wait()
        return subprocess.CompletedProcess(process.args, process.returncode, out)

    @property
    def debs(self) -> tuple[str, ...]:
        """More Debian packages than the script's own."""
        return (*DEBS, *DEBS_OF.get(self.suite, ()))

    @property
    def key(self) -> str:
        """Of all that the images depend on."""
        version = subprocess.run(
            ["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, check=True
        )
        packages = " ".join((*PACKAGES, *self.debs)).encode()
        parts = (self.script.read_bytes(), packages, version.stdout)
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]

    def image(self, kind: str) -> str:
        """The name of a root, kernel or state."""
        return f"{self.suite}-{self.key}-{kind}"

    def build(self) -> None:
        """Make what is not in the cache yet; raises `Failed`."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._tidy()
            self._make("root", self.suite, *PACKAGES)
            self._make("kernel", self.suite)
            self._make("state")

    def save_again(self) -> None:
        """The state is tied to the machine that saved it; raises `Failed`."""
        self._stamp("state").unlink(missing_ok=True)
        self.build()

    def _tidy(self) -> None:
        """Remove what the script left a day ago, or longer, as it was killed."""
        for kind in ("run", "save", "root", "kern"):
            for path in self.cache.glob(f"{kind}.??????"):
                # Where the host's /proc is still mounted below, nothing may be removed.
                mounted = f" {path.resolve()}/" in Path("/proc/self/mountinfo").read_text()
                if time.time() - path.stat().st_mtime > 86_400 and not mounted:
                    shutil.rmtree(path, ignore_errors=True)

    def _stamp(self, kind: str) -> Path:
        return self.cache / f"{self.image(kind)}.made"

    def _make(self, kind: str, *arguments: str) -> None:
        stamp = self._stamp(kind)
        if stamp.exists():
            return
        for old in self.cache.glob(f"{self.suite}-*-{kind}.*"):
            old.unlink()
        print(f"making the guest's {kind} ...", flush=True)
        before = time.monotonic()
        name = self.image(kind)
        if kind == "state":
            done = self("save", "-r", self.image("root"), "-k", self.image("kernel"), name)
        else:
            done = self(kind, name, *arguments)
        if done.returncode:
            raise Failed(f"{self.script} {kind}: exit status {done.returncode}\n{done.stdout}")
        stamp.touch()
        print(f"  {time.monotonic() - before:.0f} s", flush=True)

    def run(self, situation: Situation, tree: Path) -> tuple[int, str]:
        """The exit status of the tests, and what the guest printed.

        125 is that there is none: it took too long, or it never came up, and then it printed
        nothing.
        """
        first = SETUP
        command = f"{EXPORTS}export NSISOLATE_VM={situation.name}\n"
        if situation.as_root:
            first += f"NSISOLATE_VM={situation.name} {situation.command} 2>&1 | cat\n"
            first += "echo ${PIPESTATUS[0]} >/home/tester/out/status\n"
            command = "exit $(cat $OUT/status)"
        else:
            command += situation.command
        if situation.arguments:
            which = ["-r", self.image("root"), "-k", self.image("kernel")]
            which += ["-a", situation.arguments]
        else:
            which = ["-s", self.image("state")]
        which += ["-l", str(tree.parent / "console.log"), "-T", str(situation.seconds)]
        done = self("run", *which, "-t", str(tree), "-R", first, "--", command)
        if STARTED not in done.stdout:
            return 125, ""
        lines = [line for line in done.stdout.splitlines() if not NOISE.match(line)]
        return done.returncode, "\n".join(lines)


def of_session(sid: int) -> list[int]:
    """The processes of a session (setsid)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(path.name)) == sid:
                found.append(int(path.name))
    return found


def signal_session(sid: int, number: signal.Signals) -> None:
    """To each process of a session."""
    for pid in of_session(sid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def missing(script: Path) -> str | None:
    """What keeps a guest from running here, with what mends it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the guest is one for Linux on x86-64"
    if not os.access(script, os.X_OK):
        return f"no {script}; NSISOLATE_GUEST=/path/to/guest.sh names another"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "its images are built by apt-get and dpkg-deb, on Debian and the like"
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    lacking = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if lacking:
        packages = " ".join(NEEDED[name] for name in lacking)
        command = f"sudo apt-get install -y --no-install-recommends {packages}"
        return f"no {', '.join(lacking)} here; {command}"
    if os.geteuid() != 0:
        return "its images are built by root; sudo tox -e vm"
    return None


def cache() -> Path:
    """Where images are kept."""
    if "VMDIR" in os.environ:
        return Path(os.environ["VMDIR"])
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "nsisolate-vm"


@contextlib.contextmanager
def checkout() -> Iterator[Path]:
    """A copy of the checkout without what tools left in it."""
    with tempfile.TemporaryDirectory(prefix="vm-checkout-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(PROJECT, tree, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        yield tree


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run tests in Debian guests.")
    names = [one.name for one in SITUATIONS]
    default = [one.name for one in SITUATIONS if one.by_default]
    parser.add_argument(
        "situations",
        nargs="*",
        metavar="SITUATION",
        help=f"{', '.join(names)}; without any: {' '.join(default)}",
    )
    parser.add_argument("--suite", default="bookworm", help="of Debian (default: %(default)s)")
    parser.add_argument(
        "--tests",
        metavar="ARGUMENTS",
        help="suite-root, suite-user: these instead of a part, as one word of pytest's arguments;"
        " 'tests' is all, which takes an hour or two",
    )
    options = parser.parse_args()
    for name in options.situations:
        if name not in names:
            parser.error(f"no situation {name!r}: there are {', '.join(names)}")
    options.situations = options.situations or default
    return options


def main() -> int:
    """Run the situations asked for, and report."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    script = Path(os.environ.get("NSISOLATE_GUEST") or PROJECT.parent / "shared/vm/guest.sh")
    reason = missing(script)
    if reason is not None:
        print(f"SKIPPED: {reason}")
        return 0
    wanted = [one for one in SITUATIONS if one.name in options.situations]
    if options.tests is not None:
        wanted = [
            replace(one, command=f"{one.more} {options.tests}", seconds=6 * 3600)
            if one.more
            else one
            for one in wanted
        ]
    results: list[tuple[Situation, int, str]] = []
    try:
        guests = {}
        for suite in dict.fromkeys(one.suite or options.suite for one in wanted):
            guests[suite] = Guest(script, cache(), suite)
            guests[suite].build()
        with checkout() as tree:
            results += [
                (one, *run(guests[one.suite or options.suite], one, tree)) for one in wanted
            ]
    except Failed as error:
        print(error)
        return 1
    print()
    for situation, status, summary in results:
        word = "ok" if status == 0 else "FAILED"
        print(f"{situation.name:13} {word:7} {situation.title}: {summary}")
    return int(any(status for _, status, _ in results))


def run(guest: Guest, situation: Situation, tree: Path) -> tuple[int, str]:
    """Run one situation and print what it said; its exit status and its last line."""
    print(f"\n== {situation.name}: {situation.title}", flush=True)
    status, text = guest.run(situation, tree)
    if status == 125 and not text:
        print("the guest did not come up; its state is saved anew")
        guest.save_again()
        status, text = guest.run(situation, tree)
    print(text, flush=True)
    found = [match[1] for line in text.splitlines() if (match := SUMMARY.match(line))]
    what = "took too long" if status == 125 and text else "no tests ran"
    return status, found[-1] if found else what


if __name__ == "__main__":
    sys.exit(main())
