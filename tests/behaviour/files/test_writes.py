"""Whatever way a test writes, under readonly and overlay the host's files stay as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers import ways
from helpers.crippled import COMMON
from helpers.files import outside_of_all, snapshot
from helpers.hosts import NOBODY, become, lacks_tmpfs_attributes
from helpers.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.run import Result

pytestmark = pytest.mark.needs("sandbox")

TESTS = """
    import ways
    from pathlib import Path

    @pytest.mark.parametrize("name", sorted(ways.WAYS))
    def test_way(name, record_property):
        record_property("result", ways.attempt(name, Path("data").absolute()))
"""
DIFFERENT = {
    "rename_a_directory": "EXDEV",
    "copy_range": "EXDEV",
    "compare_links": "failed",
}
"""What an overlay in a user namespace can't do that a plain file system can: rename(2) a directory
that the host had (mv and shutil.move copy it), copy_file_range(2) out of a file that the host had
(cp and shutil read and write it), and show one inode number for such a file and a new link to it.
"""
OLDER = {
    "open_unnamed": "ENOTSUP",
    "set_an_attribute": "ENOTSUP",
    "remove_an_attribute": "ENOTSUP",
    "rename_a_new_directory": "EXDEV",
    "move_a_directory": "EIO",
    "rmtree_and_mkdir": "EIO",
    "unlink_and_create": "EIO",
}
"""And before Linux 6.6, whose tmpfs takes no attributes of users."""
NO_PIP = "pip_install_editable"

ODD = "a b 'q' \"p\" ,\\ \u00e4\u20ac\nn"
LONG = "l" * 253 + "\u00e4"


def prepared(run: Run) -> Path:
    """The data that the tests write to, made by the user that the tests run as."""
    shutil.copy(ways.__file__, run.path / "ways.py")
    run.tests(TESTS)
    data = run.path / "data"
    words = [*become(run.uid), sys.executable, str(run.path / "ways.py"), str(data)]
    subprocess.run(words, check=True, cwd=run.path)
    return data


def results(result: Result) -> dict[str, str]:
    """What became of each way."""
    assert set(result.verdicts.values()) == {"passed"}, str(result)
    return {
        name: result.value(f"test_way[{name}]", "result")
        for name in ways.WAYS
        if f"test_way[{name}]" in result.verdicts
    }


def judge(
    run: Run,
    *args: str,
    skip: str = "no_such_way",
    env: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> None:
    """Go all ways under readonly and overlay, then on the host; compare."""
    started = {"env": env, "prefix": prefix}
    data = prepared(run)
    before = snapshot(data)
    select = ("-k", f"not {skip}", "-p", "no:cacheprovider", *args)
    readonly = results(run.isolated("--ns-fs=readonly", *select, **started))
    assert snapshot(data) == before
    overlaid = results(run.isolated("--ns-fs=overlay", *select, **started))
    assert snapshot(data) == before
    plain = results(run.isolated("--ns-fs=host", *select, **started))
    assert len(plain) >= 40
    assert set(plain.values()) == {"done"}, plain
    assert snapshot(data) != before, "the ways do write"
    older = OLDER if lacks_tmpfs_attributes() else {}
    assert overlaid == {**plain, **DIFFERENT, **older}
    assert set(readonly.values()) <= {"EROFS", "failed"}, readonly
    failed = {name for name, text in readonly.items() if text == "failed"}
    programs = {"sqlite_new", "sqlite_wal", "shell", "write_pyc", "compile_all", NO_PIP}
    assert failed <= programs, readonly


@pytest.fixture
def without_pip() -> str:
    """A way to leave out where pip isn't installed."""
    words = [sys.executable, "-m", "pip", "--version"]
    there = subprocess.run(words, capture_output=True, check=False).returncode == 0
    return "no_such_way" if there else NO_PIP


@pytest.fixture(params=["root", "unprivileged"])
def run_in(
    request: pytest.FixtureRequest, require_capability: Callable[[str], None]
) -> Iterator[Callable[[str], Run]]:
    """Runs in a new directory below a given one, as root and as nobody."""
    require_capability(request.param)
    uid = NOBODY if request.param == "unprivileged" and os.geteuid() == 0 else None
    made = []

    def make(above: str, *names: str) -> Run:
        top = Path(tempfile.mkdtemp(prefix="nsisolate-nobody-", dir=above)).resolve()
        made.append(top)
        path = top.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        for one in (top, *(top.joinpath(*names[: n + 1]) for n in range(len(names)))):
            one.chmod(0o755)
            if uid is not None:
                os.chown(one, uid, uid)
        return Run(path=path, uid=uid)

    try:
        yield make
    finally:
        for path in made:
            shutil.rmtree(path)


def test_ways_on_the_disk(run_in: Callable[[str], Run], without_pip: str) -> None:
    """A checkout below /tmp: on a disk, mostly."""
    judge(run_in("/tmp"), skip=without_pip)


@pytest.mark.needs("tmpfs_attributes")
def test_ways_on_a_tmpfs(run_in: Callable[[str], Run], without_pip: str) -> None:
    """A checkout on a tmpfs, right where sandboxes have one of their own."""
    judge(run_in("/dev/shm"), skip=without_pip)


def test_ways_elsewhere(run_in: Callable[[str], Run], without_pip: str) -> None:
    """A checkout outside of all private directories, below a directory of somebody else's."""
    judge(run_in(outside_of_all()), "--ns-jobs=2", skip=without_pip)


def test_ways_with_odd_names(run_in: Callable[..., Run], without_pip: str) -> None:
    """Spaces, quotes, a newline, other scripts, and names as long as they can be."""
    judge(run_in("/tmp", ODD, LONG), skip=without_pip)


def test_ways_below_home(run_in: Callable[..., Run], without_pip: str) -> None:
    """A checkout in the home directory, which has an overlay of its own for who isn't root."""
    run = run_in(outside_of_all(), "project")
    judge(run, skip=without_pip, env={"HOME": str(run.path.parent)})


BIND = """
unshare(NEWNS if os.geteuid() == 0 else NEWUSER | NEWNS)
bind(sys.argv[1], sys.argv[1])
del sys.argv[1]
done()
"""


def test_ways_below_a_bind_mount(run_in: Callable[..., Run], without_pip: str) -> None:
    """A checkout in a directory that is a mount of its own, as container engines make them."""
    run = run_in(outside_of_all(), "project")
    prefix = (sys.executable, "-c", COMMON + BIND, str(run.path.parent))
    judge(run, skip=without_pip, prefix=prefix)


def test_what_vanishes_meanwhile(run_in: Callable[..., Run]) -> None:
    """Directories of the host come and go, in /tmp above all: no test is the worse for it."""
    run = run_in("/tmp", "suite")
    gone = [Path(tempfile.mkdtemp(prefix="gone-", dir="/tmp")) for _ in range(2)]
    gone[1].chmod(0o755)  # the other is closed to nobody, and so no overlay but a bind
    run.tests("""
        @pytest.mark.isolated(fs="overlay")
        @pytest.mark.parametrize("number", range(2))
        def test_it(number):
            time.sleep(0.1)
            with open("new", "w") as stream:
                stream.write("x")

        def test_waits():
            open("reached", "w").close()
            while os.path.exists("reached"):
                time.sleep(0.01)

        @pytest.mark.isolated(fs="overlay")
        @pytest.mark.parametrize("number", range(5))
        def test_after(number):
            with open("new", "w") as stream:
                stream.write("x")
    """)
    reached = run.path / "reached"
    # With a mount in it, /tmp is put together anew, of all that is there.
    running = run.start(prefix=(sys.executable, "-c", COMMON + BIND, str(run.path.parent)))
    try:
        while not reached.exists():
            time.sleep(0.01)
            assert running.process.poll() is None
    finally:
        for path in gone:
            path.rmdir()
        reached.unlink(missing_ok=True)
    running.wait().expect(passed=8)
