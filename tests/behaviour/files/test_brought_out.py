"""What a test leaves is found where people look for it: its tmp_path, and what it exports."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers import samples
from helpers.crippled import HOSTS
from helpers.hosts import NOBODY
from helpers.subids import granting

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

BROUGHT = "Files brought out"
FOLDER = "nsisolate-artifacts"
NO_SANDBOX = next(host.prefix for host in HOSTS if host.name == "no user namespaces")


def base(run: Run) -> Path:
    return run.path / f"basetemp-{run.count}"


def tree(folder: Path) -> list[str]:
    """The files below a directory, links included."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


PASS_AND_FAIL = """
    def test_passes(tmp_path):
        (tmp_path / "note").write_text("x")

    def test_fails(tmp_path):
        (tmp_path / "note").write_text("x")
        assert False

    def test_crashes(tmp_path):
        (tmp_path / "note").write_text("x")
        ctypes.string_at(0)
"""


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], ["test_crashes0/note", "test_fails0/note"]),
        (["-o", "tmp_path_retention_policy=failed"], ["test_crashes0/note", "test_fails0/note"]),
        (
            ["-o", "tmp_path_retention_policy=all"],
            ["test_crashes0/note", "test_fails0/note", "test_passes0/note"],
        ),
        (["-o", "tmp_path_retention_policy=none"], []),
    ],
    ids=["default", "failed", "all", "none"],
)
def test_policy(run_as_each: Run, options: list[str], kept: list[str]) -> None:
    """By default those of failed tests; all of them only where that was asked for."""
    run_as_each.tests(PASS_AND_FAIL)
    run_as_each.isolated(*options).expect(passed=1, failed=2)
    assert tree(base(run_as_each)) == kept


def test_policy_in_the_ini(run: Run) -> None:
    run.write("pytest.ini", "[pytest]\ntmp_path_retention_policy = all\n")
    run.tests(PASS_AND_FAIL)
    run.isolated("--ns-jobs=2").expect(passed=1, failed=2)
    assert "test_passes0/note" in tree(base(run))


LONG = """
    LONG = "a_name_of_more_than_thirty_characters"

    @pytest.mark.parametrize("number", range(12), ids=[f"{LONG}_{n}" for n in range(12)])
    def test_it(number, tmp_path, record_property):
        record_property("path", str(tmp_path))
        (tmp_path / "number").write_text(str(number))
        assert False

    def test_it_(tmp_path, tmpdir, record_property):
        assert str(tmp_path) == str(tmpdir)
        record_property("path", str(tmp_path))
        (tmp_path / "number").write_text("last")
        assert False
"""


def found_where_seen(run: Run, result: Result) -> set[str]:
    """Every test's file is at the path that the test saw; these paths."""
    paths = set()
    for phase in result.phases:
        if phase.when == "teardown":
            path = dict(phase.properties)["path"]
            number = (re.findall(r"_(\d+)\]", phase.nodeid) or ["last"])[0]
            assert (Path(path) / "number").read_text() == number
            assert BROUGHT not in phase.everything
            paths.add(path)
    return paths


def test_numbers_are_those_that_tests_see(run_as_each: Run) -> None:
    """Tests whose names are cut to the same one, several at once: no path is anybody else's."""
    run_as_each.tests(LONG)
    result = run_as_each.isolated("--ns-jobs=4")
    result.expect(failed=13)
    assert len(found_where_seen(run_as_each, result)) == 13
    assert len(list(base(run_as_each).iterdir())) == 13
    # and they are those of a plain run
    isolated = {Path(path).name for path in found_where_seen(run_as_each, result)}
    plain = {
        Path(dict(one.properties)["path"]).name
        for one in run_as_each().phases
        if one.when == "teardown"
    }
    assert isolated == plain


def test_numbers_under_xdist(run: Run) -> None:
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(LONG)
    result = run.isolated("-n2", "--ns-jobs=2")
    result.expect(failed=13)
    assert len(found_where_seen(run, result)) == 13


def test_taken_name_is_told(run: Run) -> None:
    """Directories that the tests name themselves may be taken: the report says where it is."""
    run.tests("""
    @pytest.mark.parametrize("name", "ab")
    def test_it(tmp_path_factory, name):
        (tmp_path_factory.mktemp("data") / "name").write_text(name)
        assert False
    """)
    result = run.isolated("--ns-jobs=2")
    result.expect(failed=2)
    for name in "ab":
        text = result.of(f"test_it[{name}]", "teardown").section(BROUGHT)
        place = base(run) / (re.findall(r"data0 is in (data1) there", text) or ["data0"])[0]
        assert (place / "name").read_text() == name
    assert "data0 is in data1 there: the name was taken" in result.out


def test_hostile_tree(run_as_each: Run) -> None:
    """Links stay links, special files stay inside, what is too much is named."""
    secret = run_as_each.path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    run_as_each.tests("""
    def test_it(tmp_path, pytestconfig):
        secret = pytestconfig.rootpath / "secret"
        (tmp_path / "link").symlink_to(secret / "file")
        (tmp_path / "folder").symlink_to(secret)
        (tmp_path.parent / "linked").symlink_to(secret)
        os.mkfifo(tmp_path / "fifo")
        socket.socket(socket.AF_UNIX).bind(str(tmp_path / "socket"))
        with open(tmp_path / "sparse", "wb") as stream:
            stream.truncate(1 << 40)
            stream.write(b"head")
        (tmp_path / "closed").mkdir()
        (tmp_path / "closed" / "file").write_text("x")
        (tmp_path / "closed" / "file").chmod(0)
        (tmp_path / "closed").chmod(0)
        (tmp_path / "new\\nline \\udcff").touch()
        assert False
    """)
    result = run_as_each.isolated()
    result.expect(failed=1)
    place = base(run_as_each) / "test_it0"
    assert sorted(os.listdir(base(run_as_each))) == ["test_it0"]
    names = ["closed", "folder", "link", "new\nline \udcff", "sparse"]
    assert sorted(os.listdir(place)) == names
    assert os.readlink(place / "link") == str(secret / "file")
    assert (place / "sparse").stat().st_size == 1 << 40
    assert (place / "sparse").stat().st_blocks < 100
    (place / "closed").chmod(0o700)
    assert (place / "closed" / "file").stat().st_size == 1
    text = result.of("test_it", "teardown").section(BROUGHT)
    assert "left out: test_it0/fifo (no regular file)" in text
    assert "left out: test_it0/socket (no regular file)" in text
    assert "left out: test_it0/fifo" in result.out


def test_too_much(run: Run) -> None:
    """A test can't fill the disk of the host with what it leaves."""
    run.tests("""
    @pytest.mark.isolated(tmpfs="1G")
    def test_it(tmp_path):
        for name in "abc":
            with open(tmp_path / name, "wb") as stream:
                stream.write(bytes(100 << 20))
        assert False
    """)
    result = run()
    result.expect(failed=1)
    assert tree(base(run)) == ["test_it0/a", "test_it0/b"]
    text = result.of("test_it", "teardown").section(BROUGHT)
    assert "left out: test_it0/c (too much)" in text


def test_files_of_other_ids(run_as_nobody: Run, require_capability: Callable[[str], None]) -> None:
    """With subordinate ids: what root inside gave to others comes out as the user's own."""
    require_capability("subids")
    run_as_nobody.uid = None
    run_as_nobody.tests("""
    @pytest.mark.isolated(user="root")
    def test_it(tmp_path, sandbox):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("x")
        (tmp_path / "folder" / "file").chmod(0o600)
        os.chown(tmp_path / "folder" / "file", 1000, 1000)
        (tmp_path / "folder").chmod(0o700)
        os.chown(tmp_path / "folder", 33, 33)
        sandbox.export(tmp_path / "folder")
        assert False
    """)
    folder = run_as_nobody.path / "grant"
    folder.mkdir()
    result = run_as_nobody(prefix=granting(folder))
    result.expect(failed=1)
    place = base(run_as_nobody) / "test_it0/folder/file"
    exported = base(run_as_nobody) / FOLDER / "test_it.py.test_it/folder/file"
    for path in (place, exported):
        assert path.read_text() == "x"
        assert path.stat().st_uid == NOBODY


EXPORT = samples.text("exports")
EXPORTED = [
    "test_it.py.test_crashes/log.txt",
    "test_it.py.test_crashes/other.txt",
    "test_it.py.test_passes/folder/below/file",
    "test_it.py.test_passes/folder/link",
    "test_it.py.test_passes/shot-2.png",
    "test_it.py.test_passes/shot.png",
    "test_it.py.test_passes/to",
]


def test_export(run_as_each: Run) -> None:
    """Copied as it is when it is exported, for a test that passes or crashes."""
    run_as_each.tests(EXPORT)
    result = run_as_each.isolated("--ns-jobs=2", "--ns-properties")
    result.expect(passed=3, failed=1)
    folder = base(run_as_each) / FOLDER
    assert tree(folder) == EXPORTED
    assert (folder / EXPORTED[5]).read_text() == "first"
    assert (folder / EXPORTED[4]).read_text() == (folder / EXPORTED[6]).read_text() == "second"
    assert os.readlink(folder / EXPORTED[3]) == "/etc/passwd"
    assert (folder / EXPORTED[0]).read_text() == "before"
    place = str(folder / "test_it.py.test_passes")
    assert result.value("test_passes", "ns_artifacts") == place
    assert "ns_artifacts" not in dict(result.of("test_none", "teardown").properties)
    text = result.of("test_crashes", "teardown").section(BROUGHT)
    assert text == f"artifacts are in {folder / 'test_it.py.test_crashes'}"
    assert f"artifacts of 2 tests are in {folder}" in result.out


def test_export_without_namespaces(run: Run) -> None:
    """In a forked process they are copied at once."""
    run.tests(EXPORT)
    place = run.path / "place"  # the host's /tmp is everybody's there
    place.mkdir()
    env = {"NS_PLACE": str(place)}
    result = run.isolated("--ns-missing=fork", prefix=NO_SANDBOX, env=env)
    result.expect(passed=3, failed=1)
    assert tree(base(run) / FOLDER) == EXPORTED


def test_export_again(run: Run) -> None:
    """A directory of one run is not written to by the next."""
    run.write(
        "pytest.ini",
        """
        [pytest]
        nsisolate_artifacts_dir = out put
        nsisolate_properties = true
        """,
    )
    run.tests("""
    def test_it(sandbox):
        open("/tmp/report.txt", "w").close()
        sandbox.export("/tmp/report.txt")
    """)
    for number in (1, 2, 3):
        place = run.path / "out put" / f"test_it.py.test_it{'' if number == 1 else f'-{number}'}"
        result = run.isolated().expect(passed=1)
        assert result.value("test_it", "ns_artifacts") == str(place)
        assert os.listdir(place) == ["report.txt"]


def test_export_under_xdist(run: Run) -> None:
    """All workers' artifacts are in one directory."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests("""
    @pytest.mark.parametrize("n", range(8))
    def test_it(sandbox, n):
        sandbox.export(__file__)
    """)
    run.isolated("-n2").expect(passed=8)
    wanted = [f"test_it.py.test_it[{number}]/test_it.py" for number in range(8)]
    assert tree(base(run) / FOLDER) == wanted


def test_export_does_not_fit(run: Run) -> None:
    """What the sandbox's tmpfs can't take twice is an error that the test sees."""
    run.tests("""
    @pytest.mark.isolated(tmpfs="4M")
    def test_it(sandbox, tmp_path):
        with open(tmp_path / "big", "wb") as stream:
            stream.write(bytes(3 << 20))
        with pytest.raises(OSError, match="big.*No space left"):
            sandbox.export(tmp_path / "big")
    """)
    run().expect(passed=1)


def test_patterns(run_as_each: Run) -> None:
    """Of every test, what it made or changed and matches; the names tell where it was."""
    run_as_each.write(
        "pytest.ini",
        """
    [pytest]
    nsisolate_artifacts = *.log build/**/*.html
        /tmp/core.*
    """,
    )
    run_as_each.write("old.log", "old")
    run_as_each.tests("""
    @pytest.mark.parametrize("name", "ab")
    def test_writes(name):
        open(f"{name}.log", "w").write(name)
        os.makedirs(f"build/{name}/deep", exist_ok=True)
        open(f"build/{name}/deep/page.html", "w").write(name)
        open(f"build/{name}/deep/other.txt", "w").write(name)
        open("/tmp/core.1", "w").write(name)

    def test_dies():
        open("/tmp/core.2", "w").write("core")
        os.kill(os.getpid(), signal.SIGKILL)

    def test_nothing():
        open("old.log").read()
    """)
    result = run_as_each.isolated()
    result.expect(passed=3, failed=1)
    folder = base(run_as_each) / FOLDER
    assert tree(folder) == [
        "test_it.py.test_dies/tmp/core.2",
        *(
            f"test_it.py.test_writes[{name}]/{file}"
            for name in "ab"
            for file in (f"{name}.log", f"build/{name}/deep/page.html", "tmp/core.1")
        ),
    ]
    for name in "ab":
        assert (folder / f"test_it.py.test_writes[{name}]/tmp/core.1").read_text() == name


@pytest.mark.parametrize("pattern", ["../x", "a/../b", "/", "''"])
def test_bad_patterns(run: Run, pattern: str) -> None:
    run.write("pytest.ini", f"[pytest]\nnsisolate_artifacts = *.log {pattern}\n")
    run.tests("def test_it(): pass")
    result = run.isolated()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "nsisolate_artifacts" in result.err
    assert repr(pattern.strip("'")) in result.err
    assert "allowed" in result.err


def test_folder_that_can_not_be_made(run_as_nobody: Run) -> None:
    """It is said in the report, and the run goes on."""
    run_as_nobody.write("pytest.ini", "[pytest]\nnsisolate_artifacts_dir = /proc/nowhere\n")
    run_as_nobody.tests("""
    def test_it(sandbox):
        sandbox.export(__file__)
    """)
    result = run_as_nobody.isolated().expect(passed=1)
    text = result.of("test_it", "teardown").section(BROUGHT)
    assert text.startswith("nothing: /proc/nowhere: ")


def test_nothing_leads_out(run: Run) -> None:
    """A test that puts a link in the place of what is brought out gets nothing brought out."""
    secret = run.path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    run.tests("""
    import shutil
    def test_it(tmp_path, sandbox, pytestconfig):
        sandbox.export(__file__)
        staging = next(one for one in tmp_path.parent.iterdir() if "export" in one.name)
        shutil.rmtree(staging)
        staging.symlink_to(pytestconfig.rootpath / "secret")
        shutil.rmtree(tmp_path)
        tmp_path.symlink_to(pytestconfig.rootpath / "secret")
        assert False
    """)
    run.isolated().expect(failed=1)
    assert not [name for name in tree(base(run)) if "file" in name]


def test_modes_of_what_comes_out(run: Run) -> None:
    run.tests("""
    def test_it(tmp_path):
        for mode in (0o4755, 0o600, 0o444):
            (tmp_path / oct(mode)).write_text("x")
            (tmp_path / oct(mode)).chmod(mode)
        assert False
    """)
    run.isolated().expect(failed=1)
    for mode in (0o4755, 0o600, 0o444):
        status = (base(run) / "test_it0" / oct(mode)).stat()
        assert stat.S_IMODE(status.st_mode) == mode & 0o777
