"""Hidden paths and writable paths, with the host's root, a read-only one and an overlay."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.refusals import GOOD, bad_tests, is_refused, said
from helpers.run import HIDING

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

EACH = pytest.mark.parametrize("fs", ["host", "readonly", "overlay"])
ODD = "odd ,:\\ '\"\n\u00e4"


def fill(run: Run) -> None:
    """Directories and files, owned by whoever runs the tests."""
    for name in ("secret/deep", f"{ODD}/deep", "open/secret", "rw", "ro"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "file").write_text("told")
    (run.path / "secret.txt").write_text("told")
    (run.path / "link").symlink_to("secret")
    for folder, names, files in os.walk(run.path):
        for name in (".", *names, *files):
            if run.uid is not None:
                os.chown(Path(folder, name), run.uid, run.uid, follow_symlinks=False)


@HIDING
def test_hidden(run_as_each: Run, fs: str) -> None:
    """A hidden directory is empty, a hidden file is empty, by whatever way one comes there."""
    fill(run_as_each)
    run_as_each.tests(f"""
    @pytest.mark.isolated(hide=["secret", "secret.txt", {ODD!r}, "open/secret", "/etc/ssl"])
    def test_it():
        for path in ("secret", "link", {ODD!r}, "open/secret", "open/../secret", "/etc/ssl"):
            assert os.listdir(path) == [], path
            assert not os.path.exists(path + "/file")
        assert open("secret.txt").read() == ""
        assert os.listdir("open") == ["secret"]
        assert os.listdir("ro") == ["file"]

    @pytest.mark.isolated
    def test_not_hidden():
        assert open("secret/deep/file").read() == "told"
    """)
    result = run_as_each(f"--ns-fs={fs}")
    result.expect(passed=2)
    assert (run_as_each.path / "secret" / "deep" / "file").read_text() == "told"


@HIDING
def test_suite_in_a_hidden_directory(run_as_each: Run, fs: str) -> None:
    """What tests need is brought back, without what is hidden in it, and nothing beside it."""
    fill(run_as_each)
    beside = run_as_each.path / "suite"
    beside.mkdir()
    inner = type(run_as_each)(path=beside, uid=run_as_each.uid)
    (beside / "secret").mkdir()
    (beside / "secret" / "file").write_text("told")
    for path in (beside, beside / "secret"):
        if inner.uid is not None:
            os.chown(path, inner.uid, inner.uid)
    inner.write("pytest.ini", "[pytest]\n")
    inner.tests(f"""
    def test_it(pytestconfig):
        assert os.getcwd() == str(pytestconfig.rootpath) == {str(beside)!r}
        assert "test_it.py" in os.listdir(".")
        assert os.listdir("..") == ["suite"]
        assert os.listdir("secret") == []
        import ns_safe
        subprocess.run([sys.executable, "-c", "import json"], check=True)
    """)
    hide = f"{run_as_each.path}:secret"
    inner.isolated(f"--ns-fs={fs}", f"--ns-hide={hide}").expect(passed=1)


@EACH
def test_writable(run_as_each: Run, fs: str) -> None:
    """What is named stays writable on the host, files too; nothing else does."""
    fill(run_as_each)
    with tempfile.TemporaryDirectory(prefix="nsisolate-nobody-", dir="/tmp") as other:
        Path(other).chmod(0o777)
        run_as_each.tests(f"""
        @pytest.mark.isolated(writable=["rw", "secret.txt", {other!r}])
        def test_it():
            for path in ("rw/new", "secret.txt", {other + "/new"!r}):
                with open(path, "w") as stream:
                    stream.write("by the test")
            try:
                open("ro/new", "w").close()
            except OSError as error:
                assert error.errno == errno.EROFS
                assert {fs!r} == "readonly"
        """)
        run_as_each(f"--ns-fs={fs}").expect(passed=1)
        path = run_as_each.path
        for file in (path / "rw" / "new", path / "secret.txt", Path(other, "new")):
            assert file.read_text() == "by the test"
    assert (path / "ro" / "new").exists() == (fs == "host")


@HIDING
def test_home_is_hidden(run_as_each: Run, fs: str) -> None:
    """A home directory that is hidden is there, and empty."""
    home = run_as_each.path / "home"
    home.mkdir()
    (home / ".netrc").write_text("token")
    run_as_each.tests("""
    def test_it():
        assert os.listdir(os.path.expanduser("~")) == []
    """)
    env = {"HOME": str(home)}
    run_as_each.isolated(f"--ns-fs={fs}", "--ns-hide=~", env=env).expect(passed=1)


BAD = [
    ("fs='rw'", ["fs", "'rw'", "readonly", "overlay"]),
    ("propagation='shared'", ["propagation", "'shared'", "slave"]),
    ("hide=['nowhere']", ["hide", "'nowhere'", "there is no", "exist"]),
    ("writable=['/nowhere']", ["writable", "'/nowhere'", "there is no"]),
    ("hide=['/']", ["hide", "'/'", "needs"]),
    ("hide=['/proc/sys']", ["hide", "'/proc/sys'", "needs"]),
    ("hide=7", ["hide", "7", "paths"]),
    ("writable=['a\\0b']", ["writable", "paths"]),
    ("rootfs='nowhere'", ["rootfs", "'nowhere'", "no directory"]),
    ("rootfs='/'", ["rootfs", "'/'", "already"]),
    ("rootfs=''", ["rootfs", "''"]),
    ("hide=['/usr/lib'], writable=['/usr/lib']", ["hide='/usr/lib'", "writable='/usr/lib'"]),
    ("fs='overlay', propagation='slave'", ["fs", "propagation", "contradicts"]),
]


def test_mistakes(run: Run) -> None:
    """What is not there, or can't be, is a usage error that names test, key and value."""
    run.tests(GOOD, bad_tests([arguments for arguments, _ in BAD]))
    result = run()
    is_refused(run, result)
    lines = said(result)
    for number, (_, parts) in enumerate(BAD):
        line = lines[f"test_it.py::test_bad_{number}"]
        for part in parts:
            assert part in line, line
