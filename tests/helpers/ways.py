"""Ways to write to files: what a test may do below its checkout, each in a directory of its own.

Copied beside the tests that use it. ``WAYS`` names them; ``prepare`` makes what they write to,
``attempt`` goes one of them and says how that went. Each looks, too, at what it has done.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging.handlers
import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = b"as it was\n" * 1000
WAYS: dict[str, Callable[[Path], None]] = {}
GIT = ("git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "gc.auto=0")

BACKEND = r"""
import zipfile
NAME = "demo-1-py3-none-any.whl"
FILES = {
    "demo.pth": "/somewhere",
    "demo-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1\n",
    "demo-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "demo-1.dist-info/RECORD": "",
}
def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(folder + "/" + NAME, "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    return NAME
build_wheel = build_editable
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "demo"
version = "1"
"""


def way(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a way by its name."""
    WAYS[function.__name__] = function
    return function


def prepare(root: Path) -> None:
    """Make the directory of each way: files, a directory with a file, links, repositories."""
    for name in WAYS:
        folder = root / name
        (folder / "sub" / "deep").mkdir(parents=True)
        for file in ("file", "other", "sub/file", "sub/deep/file"):
            (folder / file).write_bytes(OLD)
        (folder / "empty").mkdir()
        (folder / "link").symlink_to("file")
        os.link(folder / "other", folder / "hard")
        os.setxattr(folder / "file", b"user.kept", b"1")
        (folder / "module.py").write_text("VALUE = 1\n")
    with sqlite3.connect(root / "sqlite_wal" / "data.db") as base:
        base.execute("pragma journal_mode = wal")
        base.execute("create table t (x)")
    base.close()
    folder = root / "git_commit"
    call([*GIT, "init", "-q", "."], folder)
    call([*GIT, "add", "."], folder)
    call([*GIT, "commit", "-q", "-m", "first"], folder)
    (root / "pip_install_editable" / "backend.py").write_text(BACKEND)
    (root / "pip_install_editable" / "pyproject.toml").write_text(PYPROJECT)


def attempt(name: str, root: Path) -> str:
    """Go one way; "done", the name of an errno, or what else went wrong."""
    try:
        WAYS[name](root / name)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (subprocess.CalledProcessError, sqlite3.OperationalError, AssertionError):
        return "failed"
    return "done"


def call(words: list[str], folder: Path) -> str:
    """Run a command there; its output."""
    done = subprocess.run(
        words,
        cwd=folder,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"},
    )
    return done.stdout


@way
def create(folder: Path) -> None:
    with (folder / "new").open("w") as stream:
        stream.write("x")
    assert (folder / "new").read_text() == "x"


@way
def overwrite(folder: Path) -> None:
    with (folder / "file").open("wb") as stream:
        stream.write(b"x")
    assert (folder / "file").read_bytes() == b"x"


@way
def append(folder: Path) -> None:
    with (folder / "file").open("ab") as stream:
        stream.write(b"x")
    assert (folder / "file").read_bytes() == OLD + b"x"


@way
def update(folder: Path) -> None:
    with (folder / "file").open("r+b") as stream:
        stream.seek(3)
        stream.write(b"X")
    assert (folder / "file").read_bytes() == OLD[:3] + b"X" + OLD[4:]


@way
def create_exclusively(folder: Path) -> None:
    with (folder / "new").open("xb"):
        pass
    assert (folder / "new").exists()


@way
def open_truncating(folder: Path) -> None:
    os.close(os.open(folder / "file", os.O_RDONLY | os.O_TRUNC))
    assert (folder / "file").stat().st_size == 0


@way
def open_unnamed(folder: Path) -> None:
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


@way
def write_through_a_link(folder: Path) -> None:
    (folder / "link").write_bytes(b"x")
    assert (folder / "file").read_bytes() == b"x"


@way
def write_a_hard_link(folder: Path) -> None:
    (folder / "hard").write_bytes(b"x")
    assert (folder / "hard").read_bytes() == b"x"


@way
def pwrite(folder: Path) -> None:
    fd = os.open(folder / "file", os.O_WRONLY)
    try:
        os.pwrite(fd, b"X", 5)
    finally:
        os.close(fd)
    assert (folder / "file").read_bytes()[5:6] == b"X"


@way
def truncate(folder: Path) -> None:
    os.truncate(folder / "file", 7)
    assert (folder / "file").read_bytes() == OLD[:7]


@way
def ftruncate(folder: Path) -> None:
    with (folder / "file").open("r+b") as stream:
        stream.truncate(20_000)
    assert (folder / "file").stat().st_size == 20_000


@way
def unlink(folder: Path) -> None:
    os.unlink(folder / "file")
    assert not (folder / "file").exists()
    assert "file" not in os.listdir(folder)


@way
def unlink_and_create(folder: Path) -> None:
    os.unlink(folder / "file")
    (folder / "file").mkdir()
    assert os.listdir(folder / "file") == []


@way
def rmdir(folder: Path) -> None:
    os.rmdir(folder / "empty")
    assert "empty" not in os.listdir(folder)


@way
def rmtree_and_mkdir(folder: Path) -> None:
    shutil.rmtree(folder / "sub")
    (folder / "sub").mkdir()
    assert os.listdir(folder / "sub") == [], "what was there before does not come back"


@way
def mkdir(folder: Path) -> None:
    os.mkdir(folder / "sub" / "new")
    assert (folder / "sub" / "new").is_dir()


@way
def makedirs(folder: Path) -> None:
    os.makedirs(folder / "sub" / "a" / "b" / "c")
    (folder / "sub" / "a" / "b" / "c" / "file").write_text("x")


@way
def rename(folder: Path) -> None:
    os.rename(folder / "file", folder / "moved")
    assert (folder / "moved").read_bytes() == OLD
    assert not (folder / "file").exists()


@way
def rename_across_directories(folder: Path) -> None:
    os.rename(folder / "sub" / "deep" / "file", folder / "moved")
    assert os.listdir(folder / "sub" / "deep") == []


@way
def rename_over(folder: Path) -> None:
    os.rename(folder / "sub" / "file", folder / "file")
    assert not (folder / "sub" / "file").exists()


@way
def rename_a_directory(folder: Path) -> None:
    os.rename(folder / "sub", folder / "moved")
    assert (folder / "moved" / "deep" / "file").read_bytes() == OLD


@way
def move_a_directory(folder: Path) -> None:
    shutil.move(folder / "sub", folder / "moved")
    assert (folder / "moved" / "deep" / "file").read_bytes() == OLD
    assert not (folder / "sub").exists()


@way
def rename_a_new_directory(folder: Path) -> None:
    (folder / "new").mkdir()
    (folder / "new" / "file").write_text("x")
    os.rename(folder / "new", folder / "sub" / "moved")
    assert (folder / "sub" / "moved" / "file").read_text() == "x"


@way
def exchange(folder: Path) -> None:
    (folder / "other").write_bytes(b"other")
    libc = ctypes.CDLL(None, use_errno=True)
    names = [os.fsencode(folder / name) for name in ("file", "other")]
    if libc.renameat2(-100, names[0], -100, names[1], 2):  # RENAME_EXCHANGE
        raise OSError(ctypes.get_errno(), "renameat2")
    assert (folder / "file").read_bytes() == b"other"


@way
def replace_atomically(folder: Path) -> None:
    (folder / "file.tmp").write_bytes(b"x")
    os.replace(folder / "file.tmp", folder / "file")
    assert (folder / "file").read_bytes() == b"x"


@way
def link(folder: Path) -> None:
    os.link(folder / "file", folder / "again")
    (folder / "again").write_bytes(b"x")
    assert (folder / "file").read_bytes() == b"x"
    assert (folder / "file").stat().st_nlink == 2


@way
def compare_links(folder: Path) -> None:
    os.link(folder / "file", folder / "again")
    assert (folder / "again").samefile(folder / "file")


@way
def symlink(folder: Path) -> None:
    os.symlink("file", folder / "pointer")
    assert (folder / "pointer").read_bytes() == OLD


@way
def mknod_file(folder: Path) -> None:
    os.mknod(folder / "node", 0o600 | stat.S_IFREG)
    assert (folder / "node").is_file()


@way
def mkfifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert (folder / "pipe").is_fifo()


@way
def bind_a_socket(folder: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        os.chdir(folder)  # the path of a socket is short
        server.bind("socket")
        server.listen()
        client.connect("socket")


@way
def chmod(folder: Path) -> None:
    os.chmod(folder / "file", 0o751)
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o751


@way
def chmod_a_directory(folder: Path) -> None:
    os.chmod(folder / "sub", 0o2711)
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == 0o2711


@way
def chown(folder: Path) -> None:
    os.chown(folder / "file", os.getuid(), os.getgid())
    assert (folder / "file").stat().st_uid == os.getuid()


@way
def lchown(folder: Path) -> None:
    os.lchown(folder / "link", os.getuid(), os.getgid())


@way
def utime(folder: Path) -> None:
    os.utime(folder / "file", (1, 2))
    assert (folder / "file").stat().st_mtime == 2


@way
def utime_of_a_link(folder: Path) -> None:
    os.utime(folder / "link", (1, 2), follow_symlinks=False)
    assert (folder / "link").lstat().st_mtime == 2


@way
def set_an_attribute(folder: Path) -> None:
    os.setxattr(folder / "file", b"user.mine", b"2")
    assert os.getxattr(folder / "file", b"user.mine") == b"2"
    assert os.getxattr(folder / "file", b"user.kept") == b"1"


@way
def remove_an_attribute(folder: Path) -> None:
    os.removexattr(folder / "file", b"user.kept")
    assert os.listxattr(folder / "file") == []


@way
def map_shared(folder: Path) -> None:
    with (folder / "file").open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        memory[:4] = b"XXXX"
        memory.flush()
    assert (folder / "file").read_bytes().startswith(b"XXXX")


@way
def fallocate(folder: Path) -> None:
    with (folder / "file").open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, 1 << 16)
    assert (folder / "file").stat().st_size == 1 << 16


@way
def copy_range(folder: Path) -> None:
    with (folder / "file").open("rb") as source, (folder / "other").open("r+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 100, 0, 50) == 100


@way
def sendfile(folder: Path) -> None:
    with (folder / "file").open("rb") as source, (folder / "new").open("wb") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, 100) == 100


@way
def lock_and_write(folder: Path) -> None:
    with (folder / "file").open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(b"X")


@way
def temporary_file(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as stream:
        stream.write(b"x")


@way
def copy_a_tree(folder: Path) -> None:
    shutil.copytree(folder / "sub", folder / "copy")
    assert (folder / "copy" / "deep" / "file").read_bytes() == OLD


@way
def unpack_an_archive(folder: Path) -> None:
    with tarfile.open(folder / "all.tar", "w") as archive:
        archive.add(folder / "sub", "sub")
    with tarfile.open(folder / "all.tar") as archive:
        archive.extractall(folder / "out")
    assert (folder / "out" / "sub" / "file").read_bytes() == OLD


@way
def rotate_a_log(folder: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(folder / "file", maxBytes=1, backupCount=2)
    try:
        handler.emit(logging.LogRecord("x", 20, "x", 1, "said", (), None))
    finally:
        handler.close()
    assert (folder / "file.1").read_bytes() == OLD


@way
def shell(folder: Path) -> None:
    call(["sh", "-ec", "echo x >>file; sed -i s/as/AS/ sub/file; rm other; mv file moved"], folder)
    assert (folder / "moved").read_bytes() == OLD + b"x\n"
    assert (folder / "sub" / "file").read_bytes().startswith(b"AS")


@way
def sqlite_new(folder: Path) -> None:
    with sqlite3.connect(folder / "new.db") as base:
        base.execute("create table t (x)")
        base.execute("insert into t values (1)")
    base.close()


@way
def sqlite_wal(folder: Path) -> None:
    with sqlite3.connect(folder / "data.db") as base:
        base.execute("insert into t values (1)")
        base.commit()
        assert base.execute("select count(*) from t").fetchone() == (1,)
        with sqlite3.connect(folder / "data.db") as second:
            assert second.execute("select count(*) from t").fetchone() == (1,)
        second.close()
    base.close()


@way
def git_commit(folder: Path) -> None:
    (folder / "file").write_bytes(b"changed")
    (folder / "added").write_bytes(b"added")
    call([*GIT, "add", "-A"], folder)
    call([*GIT, "commit", "-q", "-m", "second"], folder)
    call([*GIT, "checkout", "-q", "-b", "branch"], folder)
    call([*GIT, "reset", "-q", "--hard", "HEAD~1"], folder)
    call([*GIT, "clean", "-qfdx"], folder)
    assert (folder / "file").read_bytes() == OLD
    assert call([*GIT, "status", "--porcelain"], folder) == ""


@way
def write_pyc(folder: Path) -> None:
    env = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    words = [sys.executable, "-c", "import module; assert module.VALUE == 1"]
    subprocess.run(words, cwd=folder, env={**env, "PYTHONPATH": str(folder)}, check=True)
    assert list((folder / "__pycache__").glob("module.*.pyc"))


@way
def compile_all(folder: Path) -> None:
    call([sys.executable, "-m", "compileall", "-q", "."], folder)
    assert (folder / "__pycache__").is_dir()


@way
def pip_install_editable(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    options = ["--no-index", "--no-build-isolation", "--no-deps", "--prefix", str(folder / "out")]
    call([*pip, "install", "-q", *options, "-e", "."], folder)
    assert list((folder / "out").rglob("demo.pth"))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
