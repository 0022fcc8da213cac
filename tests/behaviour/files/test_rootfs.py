"""Tests in a root of somebody else: a Debian, and trees that can't be one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.debian import debian
from helpers.files import snapshot

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

INSIDE = """
    def output(*words):
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def test_programs_of_the_tree():
        assert "Debian" in output("cat", "/etc/os-release")
        listed = output("dpkg", "-l")
        assert "ii  base-files" in listed and "ii  dpkg" in listed
        assert output("sh", "-c", "echo $((6 * 7))") == "42\\n"
        assert output("dpkg", "-S", "/usr/bin/dpkg") == "dpkg: /usr/bin/dpkg\\n"
        assert output("hostname") == "isolated\\n"

    def test_python(tmp_path, pytestconfig):
        import ctypes, json, sqlite3, ssl, zlib, decimal
        base = sqlite3.connect(tmp_path / "data.db")
        base.execute("create table t (x)")
        words = "import sqlite3, ssl, hashlib; print(hashlib.sha256(b'').hexdigest()[:4])"
        assert output(sys.executable, "-c", words) == "e3b0\\n"
        assert os.getcwd() == str(pytestconfig.rootpath)
        assert "test_it.py" in os.listdir(".")

    def test_devices():
        assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"} <= set(
            os.listdir("/dev")
        )
        with open("/dev/null", "wb") as null, open("/dev/zero", "rb") as zero:
            null.write(zero.read(10))
        with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
        assert caught.value.errno == errno.ENOSPC
        master, slave = os.openpty()
        assert os.ttyname(slave).startswith("/dev/pts/")
        assert not os.path.exists("/dev/kmsg")

    def test_mounts():
        assert [int(name) for name in os.listdir("/proc") if name.isdigit()] == [1, 2]
        assert os.listdir("/sys/class/net") == ["lo"]
        for folder in ("/tmp", "/var/tmp", "/dev/shm"):
            with open(folder + "/new", "x"):
                pass
        assert not os.path.exists("/old") and not os.path.exists("/new")

    def test_no_way_out():
        home = os.stat("/")
        for path in ("/..", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../.."):
            try:
                there = os.stat(path)
            except PermissionError:
                continue
            assert (there.st_dev, there.st_ino) == (home.st_dev, home.st_ino), path
"""


@pytest.mark.needs("debian")
def test_debian(run_as_each: Run) -> None:
    """Its programs, and Python tests, work in it; the host's files are not there."""
    run_as_each.tests(
        INSIDE,
        """
    def test_nothing_can_be_written():
        for path in ("/new", "/etc/new", "/usr/new", "new"):
            with pytest.raises(OSError) as caught:
                open(path, "w")
            assert caught.value.errno == errno.EROFS, path
    """,
    )
    before = snapshot(debian() / "etc")
    result = run_as_each.isolated(f"--ns-rootfs={debian()}", "--ns-jobs=2")
    result.expect(passed=6)
    assert snapshot(debian() / "etc") == before


@pytest.mark.needs("debian")
def test_debian_with_an_overlay(run_as_each: Run) -> None:
    """Every write works, as far as this user may, and vanishes."""
    run_as_each.tests(
        INSIDE,
        """
    @pytest.mark.parametrize("turn", [1, 2])
    def test_writes(turn):
        places = ["."] if os.getuid() else [".", "/", "/etc", "/usr", "/var/lib/dpkg"]
        for folder in places:
            with open(folder + "/new", "x"):
                pass
        if os.getuid() == 0:
            os.remove("/usr/bin/dpkg")
            os.chown("/etc/passwd", 1000, 1000)
    """,
    )
    if run_as_each.uid is not None:
        os.chown(run_as_each.path, run_as_each.uid, run_as_each.uid)
    before = snapshot(debian())
    run_as_each.isolated(f"--ns-rootfs={debian()}", "--ns-fs=overlay").expect(passed=7)
    assert snapshot(debian()) == before
    assert not (run_as_each.path / "new").exists()


@pytest.mark.needs("debian", "root")
def test_hide_and_writable(run: Run) -> None:
    """In the other root paths can be hidden, and some of the host's stay writable."""
    (run.path / "rw").mkdir()
    (run.path / "secret").mkdir()
    (run.path / "secret" / "file").touch()
    run.tests("""
    @pytest.mark.parametrize("turn", [1, 2])
    def test_it(turn):
        assert os.listdir("/var/lib/dpkg") == []
        assert open("/etc/passwd").read() == ""
        assert os.listdir("secret") == []
        with open(f"rw/{turn}", "x"):
            pass
    """)
    hide = "--ns-hide=/var/lib/dpkg:/etc/passwd:secret"
    for fs in ("host", "overlay"):
        options = (f"--ns-rootfs={debian()}", f"--ns-fs={fs}", hide, "--ns-writable=rw")
        run.isolated(*options).expect(passed=2)
        assert sorted(os.listdir(run.path / "rw")) == ["1", "2"]
        for path in (run.path / "rw").iterdir():
            path.unlink()


@pytest.mark.needs("debian", "root")
def test_escapes(run: Run) -> None:
    """With all capabilities inside, nothing leads out of the other root."""
    run.write("marker.txt", "of the host")
    run.tests("""
    LIBC = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        return -1 if getattr(LIBC, name)(*arguments) else 0

    def test_it(tmp_path):
        call("mount", b"none", b"/", None, 0x20 | 0x1000, None)  # MS_REMOUNT | MS_BIND
        with pytest.raises(OSError):
            open("/etc/new", "w")
        here = tmp_path / "jail"
        here.mkdir()
        os.chroot(here)  # the usual way out of a chroot: a directory above it is held
        for _ in range(64):
            os.chdir("..")
        os.chroot(".")
        assert "Debian" in open("/etc/os-release").read()
        assert not os.path.exists("/old")
        for _ in range(5):
            LIBC.umount2(b"/", 2)
            LIBC.umount2(b"/dev", 2)
        assert not os.path.exists("/old")
        with pytest.raises(OSError):
            open("/etc/new", "w")
    """)
    before = snapshot(debian() / "etc")
    run.isolated(f"--ns-rootfs={debian()}").expect(passed=1)
    assert snapshot(debian() / "etc") == before


def test_no_loader(run_as_each: Run) -> None:
    """A tree without the C library of this Python is refused, and why is said."""
    tree = run_as_each.path / "tree"
    for name in ("bin", "etc", "lib", "usr"):
        (tree / name).mkdir(parents=True)
    run_as_each.tests("""
    def test_it():
        pass
    """)
    result = run_as_each.isolated("--ns-rootfs=tree")
    result.expect(error=1)
    text = result.of("test_it", "setup").text
    assert "start Python in the new root" in text
    for part in ("ENOENT", "C library", "mend"):
        assert part in text


def test_other_libc(run_as_each: Run) -> None:
    """So is one whose C library is broken or too old, with what its loader said."""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    if not loader.exists():
        pytest.skip(f"no {loader} here")
    tree = run_as_each.path / "tree"
    (tree / "lib64").mkdir(parents=True)
    shutil.copy(loader, tree / "lib64")
    (tree / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
    (tree / "lib" / "x86_64-linux-gnu" / "libc.so.6").write_bytes(b"not a library")
    (tree / "lib" / "x86_64-linux-gnu" / "libpthread.so.0").write_bytes(b"not a library")
    run_as_each.tests("""
    def test_it():
        pass
    """)
    result = run_as_each.isolated("--ns-rootfs=tree")
    result.expect(error=1)
    text = result.of("test_it", "setup").text
    assert "start Python in the new root" in text
    for part in ("does not fit", "libc.so.6"):
        assert part in text
