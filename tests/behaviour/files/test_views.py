"""Read-only and overlaid files together with everything else that a sandbox has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

EACH = pytest.mark.parametrize("fs", ["readonly", "overlay"])

OWN = """
    def test_private_directories(tmp_path):
        for folder in ("/tmp", "/var/tmp", "/dev/shm", tmp_path):
            with open(f"{folder}/new", "x"):
                pass

    def test_kernel():
        assert [int(name) for name in os.listdir("/proc") if name.isdigit()] == [1, 2]
        assert os.listdir("/sys/class/net") == ["lo"]
        assert os.statvfs("/sys/fs/cgroup").f_flag & os.ST_RDONLY
        if os.path.isdir("/dev/mqueue"):
            open("/dev/mqueue/new", "x").close()

    def test_names():
        assert socket.gethostname() == "isolated"
        assert socket.gethostbyname("isolated").startswith("127.")

    def test_devices():
        with open("/dev/null", "wb") as null:
            null.write(b"x")
        master, slave = os.openpty()
        os.write(slave, b"x")

    @pytest.mark.isolated(devices=["/dev/null", "/dev/ptmx"])
    def test_own_devices():
        assert not os.path.exists("/dev/zero")
        os.openpty()

    @pytest.mark.isolated(user="root")
    def test_root():
        assert os.getuid() == 0
        os.listdir("/root")

    @pytest.mark.isolated(share=("ipc", "uts"), net="host")
    def test_shared():
        assert os.path.exists("/sys/class/net/lo")

    @pytest.mark.isolated(tmpfs="2M")
    def test_full(tmp_path):
        with pytest.raises(OSError) as caught, open(tmp_path / "big", "wb") as stream:
            stream.write(bytes(4 << 20))
        assert caught.value.errno == errno.ENOSPC
"""


@EACH
def test_what_a_sandbox_has(run_as_each: Run, fs: str) -> None:
    """Its private directories, /proc, /sys, names and devices are there as ever."""
    own = OWN
    if run_as_each.uid is not None:  # limiting devices takes root
        own = own.replace("@pytest.mark.isolated(devices=", "@pytest.mark.skip(reason=")
        own = own.replace('reason=["/dev/null", "/dev/ptmx"]', 'reason="x"')
    if run_as_each.uid is not None or os.geteuid() != 0:
        own = own.replace('os.listdir("/root")', "pass")
    run_as_each.tests(own)
    result = run_as_each.isolated(f"--ns-fs={fs}", "--ns-jobs=2")
    assert set(result.verdicts.values()) <= {"passed", "skipped"}, str(result)
    assert list(result.verdicts.values()).count("passed") >= 7


@EACH
def test_tmp_path_of_a_failed_test(run_as_each: Run, fs: str) -> None:
    """It is found where pytest would have left it."""
    run_as_each.tests("""
    def test_fails(tmp_path):
        (tmp_path / "note.txt").write_text("kept")
        assert False
    """)
    run_as_each.isolated(f"--ns-fs={fs}").expect(failed=1)
    (kept,) = run_as_each.path.glob("basetemp-1/test_fails*/note.txt")
    assert kept.read_text() == "kept"


@EACH
def test_tests_do_not_meet(run_as_each: Run, fs: str) -> None:
    """What one test wrote, the next one does not find; nor is it on the host."""
    run_as_each.write("kept.txt", "before")
    if run_as_each.uid is not None:
        (run_as_each.path / "kept.txt").chmod(0o666)
    run_as_each.tests("""
    @pytest.mark.parametrize("turn", range(6))
    def test_it(turn, pytestconfig):
        path = pytestconfig.rootpath / "kept.txt"
        assert path.read_text() == "before"
        try:
            (pytestconfig.rootpath / "new.txt").open("x").close()
            if os.getuid() == 0:
                path.write_text("after")
        except OSError as error:
            assert error.errno == errno.EROFS
    """)
    run_as_each.isolated(f"--ns-fs={fs}", "--ns-jobs=2").expect(passed=6)
    assert (run_as_each.path / "kept.txt").read_text() == "before"
    assert not (run_as_each.path / "new.txt").exists()


def root_is_overlay() -> bool:
    """Whether the host's own root is one, as in a container."""
    lines = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    roots = [line for line in lines if line.split()[4] == "/"]
    return " - overlay " in roots[-1]


@EACH
@pytest.mark.parametrize("inner", ["host", "readonly", "overlay"])
def test_pytest_within_a_test(run_as_each: Run, fs: str, inner: str) -> None:
    """A test may run isolated tests itself, with whatever view of the files."""
    if (fs, inner) == ("overlay", "overlay") and root_is_overlay():
        pytest.skip("/ is an overlay here, and the kernel takes no third one upon it")
    run_as_each.tests(f"""
    @pytest.mark.isolated(fs={fs!r})
    def test_outer(tmp_path):
        (tmp_path / "test_inner.py").write_text('''if True:
            import os
            def test_inner():
                assert os.getppid() == 0
        ''')
        words = [sys.executable, "-m", "pytest", "-p", "nsisolate", "--ns-isolate", "-q"]
        done = subprocess.run(
            [*words, "--ns-fs={inner}", "--rootdir", str(tmp_path), str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout
    """)
    run_as_each("-p", "no:cacheprovider").expect(passed=1)


def test_plan_says_it(run: Run) -> None:
    """--ns-debug names each overlay, and what is none with the reason."""
    run.tests("""
    def test_it():
        pass
    """)
    result = run.isolated("--ns-fs=overlay", "--ns-debug")
    result.expect(passed=1)
    assert "mount overlay on /etc" in result.out
    assert "bind /dev read-only: devices" in result.out
    readonly = run.isolated("--ns-fs=readonly", "--ns-debug")
    assert "make / read-only" in readonly.out
