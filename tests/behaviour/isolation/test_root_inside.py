"""user="root": uid 0 inside, and with subordinate ids every other id as well."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers import samples
from helpers.hosts import NOBODY
from helpers.subids import COUNT, FIRST, granting

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.run import Result, Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]


@pytest.fixture
def granted(run_as_nobody: Run, require_capability: Callable[[str], None]) -> Callable[..., Result]:
    """Run pytest as a user to whom /etc/subuid and /etc/subgid grant ids."""
    require_capability("subids")
    run_as_nobody.uid = None  # becomes nobody only once it has the grant
    folder = run_as_nobody.path / "grant"
    folder.mkdir()

    def start(*args: str, text: str | None = None, **options: Any) -> Result:
        return run_as_nobody(*args, prefix=granting(folder, text), **options)

    return start


OWNERS = samples.text("owners")


def test_ids(granted: Callable[..., Result], run_as_nobody: Run) -> None:
    """chown, setuid, setgroups: for the test, and for what it starts."""
    run_as_nobody.tests(
        OWNERS,
        f"""
    @pytest.mark.isolated(user="root")
    def test_map():
        lines = [tuple(map(int, line.split())) for line in open("/proc/self/uid_map")]
        assert lines == [(0, {NOBODY}, 1), (1, {FIRST}, {COUNT})]
        assert open("/proc/self/setgroups").read() == "allow\\n"

    @pytest.mark.isolated
    def test_same():
        # who does not ask for it has no rights by it
        assert os.getuid() == {NOBODY}
        with pytest.raises(PermissionError):
            os.setuid({FIRST})
        with pytest.raises(PermissionError):
            os.setgroups([])
    """,
    )
    granted("--ns-jobs=2").expect(passed=8)


def test_as_root(run: Run, require_capability: Callable[[str], None]) -> None:
    """Where the runner is root the same works without any grant."""
    require_capability("root")
    run.tests(OWNERS)
    run().expect(passed=6)


def test_by_name(granted: Callable[..., Result], run_as_nobody: Run) -> None:
    """A grant may name the user, and may be in several ranges; others' lines don't count."""
    run_as_nobody.tests("""
    @pytest.mark.isolated(user="root")
    def test_it(tmp_path):
        with open("/proc/self/uid_map") as stream:
            print(stream.read())
        for number in (1, 10, 11, 30):
            os.chown(tmp_path, number, number)
        with pytest.raises(OSError):
            os.chown(tmp_path, 31, 31)
    """)
    text = f"daemon:{FIRST}:5\n# nobody:1:1\nnobody:{FIRST + 100}:10\nnobody:{FIRST + 500}:20\n"
    granted(text=text).expect(passed=1)


def test_grant_that_can_not_be_used(granted: Callable[..., Result], run_as_nobody: Run) -> None:
    """A range that newuidmap refuses leaves one id, and the other tests as they are."""
    run_as_nobody.tests("""
    @pytest.mark.isolated(user="root")
    def test_one_id(tmp_path):
        assert os.getuid() == 0
        assert tmp_path.stat().st_uid == 0
        with pytest.raises(OSError) as caught:
            os.chown(tmp_path, 1000, 1000)
        assert caught.value.errno == errno.EINVAL
    """)
    # it overlaps the id that the user has itself
    granted(text=f"nobody:{NOBODY}:10\n").expect(passed=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, f"works, with {COUNT} subordinate uids"),
        ("", "works with one id (no subordinate uids in /etc/subuid)"),
        (f"nobody:{NOBODY}:10\n", "works with one id (newuidmap refuses the ranges"),
    ],
    ids=["granted", "none", "refused"],
)
def test_doctor(granted: Callable[..., Result], text: str | None, said: str) -> None:
    """The doctor tries it."""
    result = granted("--ns-doctor", text=text)
    assert f'user="root"  {said}' in result.out, str(result)


PACKAGE = """
    def package(folder, name="hello"):
        tree = folder / name
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {name}\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\n"
            "Description: x\\n")
        spool = tree / "var" / "spool" / name
        spool.mkdir(parents=True)
        program = tree / "usr" / "bin" / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\\necho hello\\n")
        program.chmod(0o4755)
        os.chown(program, 7, 8)
        program.chmod(0o4755)
        os.chown(spool, 33, 4)
        spool.chmod(0o2770)
        for one in folder.rglob("*"):
            if one.is_dir() and one != spool:
                one.chmod(0o755)
        deb = folder / f"{name}_1_all.deb"
        subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
        return deb

    def unpacked(root, name="hello"):
        program, spool = root / f"usr/bin/{name}", root / f"var/spool/{name}"
        status = program.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o4755)
        status = spool.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (33, 4, 0o2770)
        done = subprocess.run([program], capture_output=True, check=True, text=True)
        assert done.stdout == "hello\\n"

    def empty_root(folder):
        root = folder / "root"
        (root / "var/lib/dpkg/updates").mkdir(parents=True)
        (root / "var/lib/dpkg/info").mkdir()
        (root / "var/lib/dpkg/status").touch()
        return root
"""
DPKG = (
    PACKAGE
    + """
    pytestmark = pytest.mark.isolated(user="root")

    def test_tar(tmp_path):
        # what package managers do, each entry with its owner and mode
        source = tmp_path / "source"
        source.mkdir()
        for number in (0, 5, 100, 1000):
            (source / str(number)).write_text("x")
            os.chown(source / str(number), number, number)
        archive, target = tmp_path / "a.tar", tmp_path / "target"
        target.mkdir()
        subprocess.run(["tar", "-C", source, "-cf", archive, "."], check=True)
        subprocess.run(["tar", "-C", target, "--same-owner", "-xpf", archive], check=True)
        for number in (0, 5, 100, 1000):
            assert (target / str(number)).stat().st_uid == number

    def test_dpkg(tmp_path):
        deb, root = package(tmp_path), empty_root(tmp_path)
        done = subprocess.run(["dpkg", f"--root={root}", "-i", deb], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        unpacked(root)
        said = subprocess.run(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W"],
                              capture_output=True, text=True, check=True).stdout
        assert said.split() == ["hello", "1"]
"""
)
APT = (
    PACKAGE
    + """
    import hashlib, pathlib, tempfile

    @pytest.mark.isolated(user="root")
    def test_apt():
        # apt fetches as a user of its own (_apt, with its groups), then has dpkg unpack;
        # that user has to get there, and pytest's own directories are closed to others
        tmp_path = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
        tmp_path.chmod(0o755)
        repository = tmp_path / "repository"
        repository.mkdir(mode=0o755)
        (tmp_path / "build").mkdir()
        deb = package(tmp_path / "build")
        data = deb.read_bytes()
        (repository / deb.name).write_bytes(data)
        (repository / "Packages").write_text(
            "Package: hello\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\n"
            f"Filename: ./{deb.name}\\nSize: {len(data)}\\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\\nDescription: x\\n")
        root = empty_root(tmp_path)
        for one in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/cache/apt/archives/partial",
                    "var/lib/apt/lists/partial", "var/log/apt", "etc/apt/trusted.gpg.d", "tmp"):
            (root / one).mkdir(parents=True)
        (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] copy:{repository} ./\\n")
        options = ["-o", f"Dir={root}", "-o", f"Dir::State::status={root}/var/lib/dpkg/status",
                   "-o", f"DPkg::Options::=--root={root}", "-o", "Dir::Bin::dpkg=/usr/bin/dpkg",
                   "-o", "APT::Sandbox::Verify::IDs=true", "-o", "Dpkg::Use-Pty=0",
                   "-o", "APT::Sandbox::Verify::Groups=true"]
        for words in (["update"], ["install", "-y", "hello"]):
            done = subprocess.run(["apt-get", *options, *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "W:" not in done.stderr, done.stderr
        unpacked(root)
"""
)
NEEDS_DPKG = pytest.mark.skipif(not shutil.which("dpkg"), reason="no dpkg here")
NEEDS_APT = pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt here")


@NEEDS_DPKG
def test_dpkg(granted: Callable[..., Result], run_as_nobody: Run) -> None:
    """Archives and packages unpack with the owners that they name."""
    run_as_nobody.tests(DPKG)
    granted().expect(passed=2)


@NEEDS_APT
def test_apt(granted: Callable[..., Result], run_as_nobody: Run) -> None:
    """apt drops its rights to fetch, which takes other ids, and installs."""
    run_as_nobody.tests(APT)
    granted().expect(passed=1)


@NEEDS_DPKG
@NEEDS_APT
def test_packages_as_root(run: Run, require_capability: Callable[[str], None]) -> None:
    require_capability("root")
    run.tests(DPKG)
    run().expect(passed=2)
    run.tests(APT)
    run().expect(passed=1)


def test_nothing_of_it_on_the_host(granted: Callable[..., Result], run_as_nobody: Run) -> None:
    """What a test writes on the host belongs to the user, or to the ids granted to it."""
    run_as_nobody.tests("""
    @pytest.mark.isolated(user="root")
    def test_it(pytestconfig):
        (pytestconfig.rootpath / "own").write_text("x")
        (pytestconfig.rootpath / "other").write_text("x")
        os.chown(pytestconfig.rootpath / "other", 1, 1)
        with pytest.raises(PermissionError):
            os.chown("/etc/passwd", 1, 1)
        with pytest.raises(PermissionError):
            open("/etc/passwd", "a")
    """)
    granted().expect(passed=1)
    assert Path(run_as_nobody.path / "own").stat().st_uid == NOBODY
    assert Path(run_as_nobody.path / "other").stat().st_uid == FIRST
