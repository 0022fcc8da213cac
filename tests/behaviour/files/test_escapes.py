"""Ways out of a sealed sandbox, tried with all the capabilities that root has inside."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.files import snapshot
from helpers.run import HIDING

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

EACH = pytest.mark.parametrize("fs", ["readonly", "overlay"])

TOOLS = """
    LIBC = ctypes.CDLL(None, use_errno=True)
    REMOUNT, BIND, REC = 0x20, 0x1000, 0x4000

    def mount(source, target, kind, flags):
        arguments = [text and os.fsencode(text) for text in (source, target, kind)]
        if LIBC.mount(*arguments, ctypes.c_ulong(flags), None):
            return ctypes.get_errno()
        return 0

    def umount(path):
        return ctypes.get_errno() if LIBC.umount2(os.fsencode(path), 2) else 0

    def mounts():
        with open("/proc/self/mountinfo") as stream:
            return [line.split()[4].encode().decode("unicode_escape") for line in stream]

    def refuses(path, *numbers):
        with pytest.raises(OSError) as caught:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        assert caught.value.errno in numbers, (path, caught.value)
"""


def secret(run: Run) -> None:
    """A directory and a file to hide."""
    (run.path / "secret").mkdir()
    (run.path / "secret" / "file").write_text("told")
    (run.path / "secret.txt").write_text("told")


@HIDING
@pytest.mark.needs("root")
def test_take_everything_away(run: Run, fs: str) -> None:
    """Unmount whatever can be: no hidden file appears, and nothing can be written."""
    secret(run)
    run.tests(
        TOOLS,
        f"""
    @pytest.mark.isolated(fs={fs!r}, hide=["secret", "secret.txt"])
    def test_it(pytestconfig):
        root = str(pytestconfig.rootpath)
        for path in ("secret", "secret.txt"):
            umount(os.path.join(root, path))
            mount("none", os.path.join(root, path), None, REMOUNT | BIND)
        assert os.listdir("secret") == [] and open("secret.txt").read() == ""
        places = mounts()
        for _ in range(3):
            for place in reversed(places):
                umount(place)
        for place in reversed(places):
            mount("none", place, None, REMOUNT | BIND)
        for top in (root, "/proc/1/root" + root, "/proc/1/cwd", "/old" + root, "/../.." + root):
            for path in ("secret/file", "secret.txt"):
                try:
                    text = open(os.path.join(top, path)).read()
                except OSError:
                    continue
                assert text == "", os.path.join(top, path)
            if {fs!r} != "host":
                try:
                    open(os.path.join(top, "escaped"), "w").close()
                except OSError:
                    continue
                assert {fs!r} == "overlay"
    """,
    )
    before = snapshot(run.path / "secret")
    result = run()
    result.expect(passed=1)
    assert snapshot(run.path / "secret") == before
    assert (run.path / "secret.txt").read_text() == "told"
    assert not (run.path / "escaped").exists()


@EACH
@pytest.mark.needs("root")
def test_remount(run: Run, fs: str) -> None:
    """What is read-only stays so: by remounting, binding, or in namespaces of one's own."""
    run.tests(
        TOOLS,
        f"""
    def test_it(tmp_path, pytestconfig):
        root = str(pytestconfig.rootpath)
        marker = os.path.join(root, "escaped")
        if {fs!r} == "readonly":
            for place in ("/", "/etc", root):
                assert mount("none", place, None, REMOUNT | BIND) in (errno.EPERM, errno.EINVAL)
                assert mount("none", place, None, REMOUNT) in (errno.EPERM, errno.EINVAL)
            refuses(marker, errno.EROFS)
            copy = tmp_path / "copy"
            copy.mkdir()
            assert mount(root, copy, None, BIND | REC) == 0
            assert mount("none", copy, None, REMOUNT | BIND) in (errno.EPERM, errno.EINVAL)
            refuses(copy / "escaped", errno.EROFS)
        child = os.fork()
        if not child:
            code = 1
            try:
                LIBC.unshare(0x10000000 | 0x20000)  # CLONE_NEWUSER | CLONE_NEWNS
                for place in reversed(mounts()):
                    mount("none", place, None, REMOUNT | BIND)
                try:
                    open(marker, "w").close()
                except OSError:
                    pass
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """,
    )
    run.isolated(f"--ns-fs={fs}").expect(passed=1)
    assert not (run.path / "escaped").exists()


@EACH
def test_devices_and_settings(run_as_each: Run, fs: str) -> None:
    """The host's disks can't be mounted, and its kernel's settings can't be written."""
    run_as_each.tests(
        TOOLS,
        """
    def test_settings():
        refused = (errno.EROFS, errno.EACCES)
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness",
                     "/proc/sys/fs/file-max", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper",
                     "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state"):
            if os.path.exists(path):
                refuses(path, *refused)
        if os.getuid() == 0:
            with open("/proc/sys/net/ipv4/ip_default_ttl", "w") as own:
                own.write("63")  # of the network of its own

    def test_disks(tmp_path):
        with open("/proc/partitions") as stream:
            names = [line.split() for line in stream.read().splitlines()[2:]]
        for major, minor, _, name in names[:4]:
            node = tmp_path / name
            with pytest.raises(PermissionError):
                os.mknod(node, 0o600 | 0o060000, os.makedev(int(major), int(minor)))
            for kind in ("ext4", "xfs", "btrfs"):
                assert mount(f"/dev/{name}", tmp_path, kind, 0) != 0

    def test_descriptors():
        for number in os.listdir("/proc/self/fd"):
            assert not os.path.isdir(f"/proc/self/fd/{number}/.")
        for number in os.listdir("/proc/1/fd") if os.access("/proc/1/fd", os.R_OK) else []:
            path = f"/proc/1/fd/{number}"
            # At most what was written in here itself, and that leads nowhere.
            if os.path.isdir(f"{path}/."):
                assert os.path.samefile(path, f"{path}/..")
                assert sorted(set(name[0] for name in os.listdir(path))) == ["u", "w"]

    def test_parents():
        root = os.stat("/")
        for path in ("/..", "/proc/1/root", "/proc/self/cwd/" + "../" * 40):
            try:
                there = os.stat(path)
            except PermissionError:
                continue
            assert (there.st_dev, there.st_ino) == (root.st_dev, root.st_ino)
    """,
    )
    run_as_each.isolated(f"--ns-fs={fs}").expect(passed=4)


SWAP = """
import os, sys
os.chdir(sys.argv[1])
os.mkdir("ready")
while True:
    os.rename("victim", "aside")
    os.symlink("outside", "victim")
    os.unlink("victim")
    os.rename("aside", "victim")
"""


@HIDING
def test_symbolic_link_race(run_as_each: Run, fs: str) -> None:
    """A path that turns into a link and back meanwhile: no harm to where it leads, and no hang."""
    path = run_as_each.path
    for name in ("victim", "outside"):
        (path / name).mkdir()
        (path / name / "file").write_text(name)
    run_as_each.tests(f"""
    @pytest.mark.parametrize("number", range(8))
    def test_it(number):
        try:
            with open("outside/file") as stream:
                assert stream.read() == "outside"
        except FileNotFoundError:
            pass  # hidden: the path led there when it was resolved
        if {fs!r} != "host":
            try:
                open("outside/escaped", "w").close()
            except OSError:
                pass
    """)
    with subprocess.Popen([sys.executable, "-c", SWAP, str(path)]) as swapper:
        try:
            for _ in range(3):
                hide = f"--ns-hide={path / 'victim'}"
                result = run_as_each.isolated(f"--ns-fs={fs}", hide, "--ns-jobs=2")
                assert set(result.verdicts.values()) <= {"passed", "error"}, str(result)
                for phase in result.phases:
                    if phase.category == "error":
                        assert "SANDBOX FAILED at" in phase.text, str(result)
        finally:
            swapper.kill()
    assert os.listdir(path / "outside") == ["file"]
