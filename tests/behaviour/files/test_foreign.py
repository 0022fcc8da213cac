"""Files and directories of other owners, with the rights that a user without privileges has."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers import samples
from helpers.files import outside_of_all, snapshot
from helpers.hosts import NOBODY
from helpers.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs("sandbox", "root", "unprivileged")

VIEWS = pytest.mark.parametrize("view", ["--ns-fs=overlay", "--ns-profile=hermetic"])
#: An owner that is neither root nor who runs the tests.
OTHER = 12345

WAYS = samples.text("foreign_files")
#: Who can only change a stand-in of a file that isn't its own is its owner. (A file that it may
#: neither write to nor rename has none.)
DIFFERENT = {"touch read": "done", "chmod all": "done", "chmod shut/all": "done"}
#: Of each file: its mode, and whether it is the test user's.
FILES = {
    "all": (0o666, False),
    "mine": (0o644, True),
    "read": (0o644, False),
    "closed": (0o600, False),
    "open/all": (0o666, False),
    "open/read": (0o644, False),
    "open/mine": (0o644, True),
    "open/deep/read": (0o644, False),
    "shut/all": (0o666, False),
    "shut/mine": (0o644, True),
    "shut/deep/mine": (0o644, True),
    "own/all": (0o666, False),
    "group": (0o664, False),
}
FOLDERS = {
    "open": (0o777, False),
    "open/deep": (0o777, False),
    "shut": (0o755, False),
    "shut/deep": (0o755, False),
    "own": (0o755, True),
}


def fill(top: Path, owner: int) -> None:
    """A checkout of another owner, with what the world may write to, and what it may not."""
    for name in FOLDERS:
        (top / name).mkdir()
    for name in FILES:
        (top / name).write_text(name)
    (top / "open" / "link").symlink_to("all")
    os.lchown(top / "open" / "link", owner, owner)
    for name, (mode, own) in {**FILES, **FOLDERS}.items():
        path = top / name
        who = NOBODY if own else owner
        os.chown(path, who, NOBODY if name == "group" else who)
        path.chmod(mode)
    for number, name in enumerate(FILES):
        os.utime(top / name, ns=(10**18, 10**18 + number))


@pytest.fixture(params=["/tmp", "elsewhere", "home"])
def checkout(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[int], tuple[Run, Path, dict[str, str]]]]:
    """A checkout that belongs to somebody else, wherever it lies."""
    above = request.param if request.param == "/tmp" else outside_of_all()
    top = Path(tempfile.mkdtemp(prefix="nsisolate-nobody-", dir=above))

    def make(owner: int) -> tuple[Run, Path, dict[str, str]]:
        path = top / "project"
        path.mkdir()
        run = Run(path=path, uid=NOBODY)
        run.tests(WAYS)
        run.write("pytest.ini", "[pytest]\n")
        fill(path, owner)
        for one in (top, path):
            os.chown(one, owner, owner)
        top.chmod(0o755)
        path.chmod(0o777)
        home = top if request.param == "home" else path
        return run, path, {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}

    try:
        yield make
    finally:
        shutil.rmtree(top)


@VIEWS
@pytest.mark.parametrize("owner", [0, OTHER])
def test_checkout_of_another_owner(
    checkout: Callable[[int], tuple[Run, Path, dict[str, str]]], owner: int, view: str
) -> None:
    """What this user may write on the host works and vanishes; the rest fails as it does there."""
    run, path, env = checkout(owner)
    before = judged(path)
    found = results(run, "--ns-isolate", view, env=env)
    assert judged(path) == before
    plain = path.parent / "plain"
    for number in range(len(found)):
        folder = plain / str(number)
        folder.mkdir(parents=True)
        fill(folder, owner)
        os.chown(folder, owner, owner)
        folder.chmod(0o777)
    on_host = results(run, env={**env, "NS_PLAIN": str(plain)})
    assert "EACCES" in on_host.values()
    assert "EPERM" in on_host.values()
    different = {f"test_way[{name}]": result for name, result in DIFFERENT.items()}
    assert found == {**on_host, **different}


def judged(path: Path) -> dict[str, tuple[object, ...]]:
    """What no test may change: all that `fill` made."""
    names = {str(path / name) for name in (*FILES, *FOLDERS, "open/link")}
    return {name: text for name, text in snapshot(path).items() if name in names}


def results(run: Run, *args: str, env: dict[str, str]) -> dict[str, Any]:
    """What became of each way."""
    result = run("-p", "no:cacheprovider", *args, env=env)
    assert set(result.verdicts.values()) == {"passed"}, str(result)
    return {name: result.value(name, "result") for name in result.verdicts}


@pytest.fixture
def beside(run_as_nobody: Run) -> Iterator[tuple[Run, Path]]:
    """A checkout of the test user's own, and a file of root's that everybody may write to."""
    folder = Path(tempfile.mkdtemp(prefix="nsisolate-nobody-", dir=outside_of_all()))
    try:
        folder.chmod(0o777)
        (folder / "data").write_text("kept")
        (folder / "data").chmod(0o666)
        yield run_as_nobody, folder
    finally:
        shutil.rmtree(folder)


@VIEWS
def test_elsewhere_the_report_says_why(beside: tuple[Run, Path], view: str) -> None:
    """Outside of checkout and HOME nothing is copied ahead; who doesn't write there passes."""
    run, folder = beside
    run.tests(f"""
    def test_reads():
        assert open({str(folder / "data")!r}).read() == "kept"

    def test_writes():
        with open({str(folder / "data")!r}, "a") as stream:
            stream.write("more")

    def test_program():
        done = subprocess.run(["rm", {str(folder / "data")!r}], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr

    def test_other_failure():
        assert False

    @pytest.mark.isolated(writable=[{str(folder)!r}])
    def test_named():
        test_writes()
    """)
    result = run.isolated(view).expect(passed=2, failed=3)
    for name in ("test_writes", "test_program"):
        told = result.of(name).section("another owner")
        for part in ("EOVERFLOW", "why:", "Fix:", "chown", "writable=", "HOME"):
            assert part in told, str(result)
    assert str(folder / "data") in result.of("test_writes").section("another owner")
    assert not result.of("test_other_failure").section("another owner")
    assert (folder / "data").read_text() == "keptmore"


@VIEWS
def test_one_file_of_root(run_as_nobody: Run, view: str) -> None:
    """In a checkout of one's own a file of root's can be written to; what it held is there."""
    run = run_as_nobody
    data = run.write("data", "kept")
    data.chmod(0o666)
    locked = run.write("locked", "kept")
    locked.chmod(0o644)
    run.tests("""
    @pytest.mark.parametrize("turn", range(3))
    def test_it(turn):
        with open("data", "a") as stream:
            stream.write("more")
        assert open("data").read() == "keptmore"
        with pytest.raises(PermissionError) as caught:
            open("locked", "a")
        assert caught.value.errno == errno.EACCES
        os.replace("data", "locked")
    """)
    run.isolated(view, "--ns-jobs=2").expect(passed=3)
    assert data.read_text() == locked.read_text() == "kept"
    assert (data.stat().st_uid, locked.stat().st_uid) == (0, 0)


def test_too_much_is_not_copied(run_as_nobody: Run) -> None:
    """A file that is too long stays the host's: to be read, and not to be written to."""
    run = run_as_nobody
    data = run.write("data", "kept")
    with data.open("r+b") as stream:
        stream.truncate((16 << 20) + 1)
    data.chmod(0o666)
    run.tests("""
    def test_reads():
        assert open("data").read(4) == "kept"

    def test_writes():
        open("data", "a")
    """)
    result = run.isolated("--ns-fs=overlay").expect(passed=1, failed=1)
    assert "16 MiB" in result.of("test_writes").section("another owner")


@pytest.mark.needs("tmpfs_attributes")
def test_hidden_and_writable_in_it(run_as_nobody: Run) -> None:
    """What is hidden is not brought back by a copy; what stays writable is not copied."""
    run = run_as_nobody
    for name in ("secret", "rw"):
        (run.path / name).mkdir(mode=0o777)
        (run.path / name).chmod(0o777)
        (run.path / name / "data").write_text("kept")
        (run.path / name / "data").chmod(0o666)
    run.tests("""
    @pytest.mark.isolated(fs="overlay", hide=["secret"], writable=["rw"])
    def test_it():
        assert os.listdir("secret") == []
        with open("rw/data", "a") as stream:
            stream.write("more")
    """)
    run().expect(passed=1)
    assert (run.path / "rw" / "data").read_text() == "keptmore"
    assert (run.path / "secret" / "data").read_text() == "kept"


def test_plan_says_what_is_copied(run_as_nobody: Run) -> None:
    """--ns-debug tells of the copies, and of none where there is nothing to copy."""
    run = run_as_nobody
    run.tests("def test_it(): pass")
    for path in run.path.iterdir():
        os.chown(path, NOBODY, NOBODY)
    data = run.write("data", "kept")
    data.chmod(0o666)
    assert "of other owners" in run.isolated("--ns-fs=overlay", "--ns-debug").out
