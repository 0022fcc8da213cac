"""profile="hermetic": a green test depends on the checkout and the interpreter, on nothing else."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.files import host_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

TRIED, WRITTEN = "Not hermetic: tried", "Not hermetic: files written"
#: A host that differs from the next one in everything that an environment can say.
ODD_HOST = {
    "SECRET_TOKEN": "abc",
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "C",
    "LANGUAGE": "de",
    "TZ": "Asia/Tokyo",
    "XDG_RUNTIME_DIR": "/run/user/0",
    "DISPLAY": ":0",
}


def test_environment(run_as_each: Run) -> None:
    """Cleaned, with a HOME of its own, and fixed zone, language and umask."""
    run_as_each.tests("""
    import pathlib, tempfile
    WANTED = {"HOME": "/tmp/home", "TZ": "UTC", "LANG": "C.UTF-8"}
    GONE = ["SECRET_TOKEN", "LC_ALL", "LANGUAGE", "XDG_RUNTIME_DIR", "DISPLAY", "TMPDIR"]

    def is_fixed():
        assert {name: os.environ.get(name) for name in WANTED} == WANTED
        assert not [name for name in GONE if name in os.environ]
        assert os.environ["PATH"]

    @pytest.mark.parametrize("turn", [1, 2])
    def test_it(turn):
        is_fixed()
        assert time.tzname == ("UTC", "UTC")
        assert time.localtime(0).tm_hour == 0
        assert tempfile.gettempdir() == "/tmp"
        home = pathlib.Path.home()
        assert str(home) == "/tmp/home"
        assert list(home.iterdir()) == []
        assert home.stat().st_mode & 0o777 == 0o700
        (home / ".config").write_text("x")
        assert os.uname().nodename == "isolated"
        umask = os.umask(0)
        assert umask == 0o022
        os.umask(umask)

    def test_programs():
        script = 'echo "$HOME $TZ $LANG ${SECRET_TOKEN-}"; umask; date -d @0 +%H; ls -A "$HOME"'
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "/tmp/home UTC C.UTF-8 \\n0022\\n00\\n"

    @pytest.mark.isolated(env={"ADDED": "1", "TZ": "Asia/Tokyo"})
    def test_added():
        assert os.environ["ADDED"] == "1"
        assert os.environ["LANG"] == "C.UTF-8"
        assert "SECRET_TOKEN" not in os.environ
        assert time.localtime(0).tm_hour == 9

    @pytest.mark.isolated(env="inherit")
    def test_inherited():
        assert os.environ["SECRET_TOKEN"] == "abc"
        assert os.environ["TZ"] == "Asia/Tokyo"
        assert os.environ["HOME"] != "/tmp/home"

    @pytest.mark.isolated(False)
    def test_runner():
        assert os.environ["SECRET_TOKEN"] == "abc"
    """)
    tmp = run_as_each.path / "tmp"
    tmp.mkdir()
    if run_as_each.uid is not None:
        os.chown(tmp, run_as_each.uid, -1)
    env = {**ODD_HOST, "TMPDIR": str(tmp)}
    closed = ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh"]
    options = ["--ns-profile=hermetic", "--ns-jobs=2"]
    run_as_each.isolated(*options, env=env, prefix=closed).expect(passed=6)
    assert not Path("/tmp/home").exists()


def test_zone_of_a_plain_sandbox(run: Run) -> None:
    """TZ in env= is heeded by the interpreter, without any profile."""
    run.tests("""
    @pytest.mark.isolated(env={"TZ": "Asia/Tokyo"})
    def test_it():
        assert time.localtime(0).tm_hour == 9
    """)
    run(env={"TZ": "UTC"}).expect(passed=1)


def test_writes_vanish(run_as_each: Run) -> None:
    """What a test writes in the checkout is there for it, and nowhere else."""
    run_as_each.tests("""
    pytestmark = pytest.mark.isolated(profile="hermetic")

    @pytest.mark.parametrize("turn", [1, 2])
    def test_it(turn, tmp_path, pytestconfig):
        with open(pytestconfig.rootpath / "written", "x") as stream:
            stream.write("x")
        assert (pytestconfig.rootpath / "written").read_text() == "x"
        os.remove(__file__)
        (tmp_path / "note").write_text("x")
        assert socket.create_server(("127.0.0.1", 80))
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
    """)
    run_as_each("--ns-jobs=2").expect(passed=2)
    assert not (run_as_each.path / "written").exists()
    assert (run_as_each.path / "test_it.py").exists()


MERGED = """
    def values(sandbox):
        spec = sandbox.spec
        return spec.profile, spec.fs, spec.net, spec.env, spec.hostname
"""


def test_given_keys_win(run: Run) -> None:
    """Wherever they are given: in a marker, on the command line, in the ini."""
    run.tests(
        MERGED,
        """
    @pytest.mark.isolated(profile="hermetic")
    def test_all(sandbox):
        assert values(sandbox) == ("hermetic", "overlay", "loopback", "clean", os.environ["NAME"])

    @pytest.mark.isolated(profile="hermetic", fs="host", env="inherit")
    def test_some(sandbox):
        assert values(sandbox) == ("hermetic", "host", "loopback", "inherit", os.environ["NAME"])
        assert os.environ["HOME"] != "/tmp/home"

    @pytest.mark.isolated
    class TestOther:
        @pytest.mark.isolated(hostname="db", profile="hermetic")
        def test_near(self, sandbox):
            assert values(sandbox)[-1] == "db"

        @pytest.mark.isolated(profile=None)
        def test_none(self, sandbox):
            assert values(sandbox)[:3] == (None, "host", "loopback")
    """,
    )
    env = {"NAME": "isolated"}
    # env=clean lets only some names through
    keep = {f"PYTEST_{name}": value for name, value in env.items()}
    run.path.joinpath("test_it.py").write_text(
        run.path.joinpath("test_it.py").read_text().replace('"NAME"', '"PYTEST_NAME"')
    )
    run(env=keep).expect(passed=4)
    run("--ns-hostname=cli", "-k", "all or some", env={"PYTEST_NAME": "cli"}).expect(passed=2)
    run.write("pytest.ini", "[pytest]\nnsisolate_hostname = ini\nnsisolate_profile = hermetic\n")
    run("-k", "all or some", env={"PYTEST_NAME": "ini"}).expect(passed=2)


def test_in_the_ini(run: Run) -> None:
    run.write("pytest.ini", "[pytest]\nnsisolate_profile = hermetic\nnsisolate_isolate = true\n")
    run.tests(
        MERGED,
        """
    def test_it(sandbox):
        assert values(sandbox) == ("hermetic", "overlay", "loopback", "clean", "isolated")
    """,
    )
    run().expect(passed=1)


def test_by_a_hook(run: Run) -> None:
    """A hook that names the profile gets the whole of it."""
    run.write(
        "conftest.py",
        """
    import dataclasses
    def pytest_nsisolate_spec(item, spec):
        return dataclasses.replace(spec, profile="hermetic", hostname="mine")
    """,
    )
    run.tests(
        MERGED,
        """
    @pytest.mark.isolated
    def test_it(sandbox):
        assert values(sandbox) == ("hermetic", "overlay", "loopback", "clean", "mine")
        assert os.environ["HOME"] == "/tmp/home"
    """,
    )
    run().expect(passed=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("profile='strict'", ["profile='strict'", "hermetic"]),
        ("profile=True", ["profile=True", "hermetic"]),
        ("profile='hermetic', propagation='slave'", ["propagation='slave'", "profile='hermetic'"]),
    ],
)
def test_mistakes(run: Run, arguments: str, says: list[str]) -> None:
    run.tests(f"""
    @pytest.mark.isolated({arguments})
    def test_it(): pass
    """)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert all(word in result.err for word in ["test_it.py::test_it", *says]), str(result)


@pytest.fixture
def services() -> Iterator[dict[str, Path]]:
    """Sockets of the host, with somebody who listens, by the variable that names them."""
    folder = Path(tempfile.mkdtemp(prefix="test-services-", dir="/run"))
    folder.chmod(0o755)
    listening = []
    paths = {name: folder / name.lower() for name in ("SSH_AUTH_SOCK", "DOCKER_HOST", "OTHER")}
    try:
        for path in paths.values():
            one = socket.socket(socket.AF_UNIX)
            one.bind(str(path))
            path.chmod(0o777)
            one.listen()
            listening.append(one)
        yield paths
    finally:
        for one in listening:
            one.close()
        for path in paths.values():
            path.unlink()
        folder.rmdir()


CONNECT = """
    import json
    PATHS = json.loads(os.environ["PYTEST_PATHS"])

    def reached():
        found = []
        for path in PATHS:
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(path)
                except OSError:
                    continue
                found.append(path)
        return found
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize("fs", ["overlay", "readonly", "host"])
def test_host_sockets(run_as_each: Run, services: dict[str, Path], fs: str) -> None:
    """Those that variables name, and all others that are bound on the host."""
    paths = [str(path) for path in services.values()]
    run_as_each.tests(
        CONNECT,
        f"""
    @pytest.mark.isolated(profile="hermetic", fs={fs!r})
    def test_hidden(sandbox):
        assert len(PATHS) == 3
        assert reached() == []
        assert os.environ["PYTEST_PATHS"]
        assert set(PATHS) <= set(sandbox.spec.hide)
        assert not os.path.exists("/run/user") or os.listdir("/run/user") == []

    @pytest.mark.isolated(fs={fs if fs != "overlay" else "host"!r})
    def test_seen():
        assert reached() == PATHS
    """,
    )
    env = {
        "SSH_AUTH_SOCK": paths[0],
        "DOCKER_HOST": f"unix://{paths[1]}",
        "PYTEST_PATHS": json.dumps(paths),
    }
    run_as_each(env=env).expect(passed=2)


@pytest.mark.needs("root")
def test_a_socket_that_is_wanted(run_as_each: Run, services: dict[str, Path]) -> None:
    """One that writable= names is not hidden, the others are."""
    paths = [str(path) for path in services.values()]
    run_as_each.tests(
        CONNECT,
        f"""
    @pytest.mark.isolated(profile="hermetic", writable=[{paths[1]!r}])
    def test_it(sandbox):
        assert reached() == [PATHS[1]]
    """,
    )
    run_as_each(env={"PYTEST_PATHS": json.dumps(paths)}).expect(passed=1)


def test_older_kernels() -> None:
    """Before 6.6 no directory can be hidden in an overlay; the sockets still are."""
    paths = ("/run", "/run/some.socket")
    release = os.uname()
    new = os.uname_result([*release[:2], "6.6.0", *release[3:]])
    old = os.uname_result([*release[:2], "6.5.0-27-generic", *release[3:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "uname", lambda: new)
        assert host_sockets.without_directories(paths) == paths
        patch.setattr(os, "uname", lambda: old)
        assert host_sockets.without_directories(paths) == paths[1:]


REACH = """
    def test_fails(pytestconfig, tmp_path):
        root = pytestconfig.rootpath
        (root / "direct.txt").write_text("x")
        (tmp_path / "own.txt").write_text("x")
        open("/tmp/own.txt", "w").close()
        (root / "old.txt").unlink()
        (root / "folder").mkdir()
        subprocess.run(["sh", "-c", "echo x > by_shell.txt"], check=True)
        for address in (("192.0.2.7", 80), ("127.0.0.1", 5432), ("2001:db8::1", 443)):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            with socket.socket(family) as client:
                with pytest.raises(OSError):
                    client.connect(address)
        with pytest.raises(OSError):
            socket.getaddrinfo("service.example.com", 80)
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
            own_port = server.getsockname()[1]
        with open("/etc/passwd") as stream:
            stream.read()
        with open(tmp_path / "to", "w") as stream:
            stream.write("x")
        os.rename(tmp_path / "to", tmp_path / "there")
        assert own_port == 0

    def test_passes(pytestconfig):
        (pytestconfig.rootpath / "direct.txt").write_text("x")

    def test_clean():
        assert False

    def test_crashes(pytestconfig):
        (pytestconfig.rootpath / "before.txt").write_text("x")
        ctypes.string_at(0)
"""


def test_report_says_why(run_as_each: Run) -> None:
    """A failing test lists what it tried to write to and reach, and what was written."""
    old = run_as_each.write("old.txt", "x")
    if run_as_each.uid is not None:
        os.chown(old, run_as_each.uid, -1)
    run_as_each.tests(REACH)
    result = run_as_each.isolated("--ns-profile=hermetic")
    result.expect(passed=1, failed=3)
    root = run_as_each.path
    tried = result.of("test_fails").section(TRIED)
    assert tried.splitlines() == [
        f"open for writing: {root}/direct.txt",
        f"remove: {root}/old.txt",
        f"make directory: {root}/folder",
        "connect to: 192.0.2.7:80",
        "connect to: 127.0.0.1:5432, where nothing listens in the sandbox",
        "connect to: [2001:db8::1]:443",
        "look up: service.example.com",
    ]
    written = result.of("test_fails", "teardown").section(WRITTEN)
    assert sorted(written.splitlines()) == [
        f"{root}/by_shell.txt",
        f"{root}/direct.txt",
        f"{root}/old.txt (removed)",
    ]
    assert f"open for writing: {root}/direct.txt" in result.out
    assert f"{root}/by_shell.txt" in result.out
    for name in ("test_passes", "test_clean"):
        assert "Not hermetic" not in result.of(name).everything
        assert "Not hermetic" not in result.of(name, "teardown").everything
    assert result.of("test_crashes", "teardown").section(WRITTEN) == f"{root}/before.txt"
    assert old.exists()


def test_nothing_is_told_without_the_profile(run: Run) -> None:
    run.write("old.txt", "x")
    run.tests(REACH)
    result = run.isolated()
    assert "Not hermetic" not in result.out


def test_the_audit_changes_nothing(run: Run) -> None:
    """Odd arguments, recursion, threads: a test sees no difference."""
    run.tests("""
    import threading

    class Path:
        def __fspath__(self):
            raise ZeroDivisionError

    def test_odd():
        with pytest.raises(ZeroDivisionError):
            open(Path(), "w")
        with pytest.raises(OSError):
            os.mkdir(b"/proc/\\xff")
        with pytest.raises(OSError) as caught:
            os.mkdir("x", dir_fd=999)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError):
            open("/dev/null/\\udcff", "w")
        with pytest.raises(ValueError):
            open("a\\0b", "w")
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):
            client.connect(b"\\0abstract")
        with socket.socket(socket.AF_INET) as client, pytest.raises(TypeError):
            client.connect(7)

    def test_threads(tmp_path):
        def write(n):
            for k in range(50):
                (tmp_path / f"{n}-{k}").write_text("x")
        threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
        for one in threads: one.start()
        for one in threads: one.join()
        assert len(os.listdir(tmp_path)) == 200
    """)
    run.isolated("--ns-profile=hermetic").expect(passed=2)


def test_without_namespaces(run: Run) -> None:
    """In a forked process the profile can't be held: each test is an error that names it."""
    from helpers.crippled import HOSTS

    prefix = next(host.prefix for host in HOSTS if host.name == "no user namespaces")
    run.tests("""
    def test_it():
        open("ran", "w").close()
    """)
    result = run.isolated("--ns-profile=hermetic", "--ns-missing=fork", prefix=prefix, env=ODD_HOST)
    assert result.verdicts == {"test_it": "error"}, str(result)
    text = result.of("test_it", "setup").text
    assert text.startswith("SANDBOX FAILED: --ns-missing=fork can't hold profile='hermetic'\n")
    assert "(option --ns-profile): " in text
    assert not (run.path / "ran").exists()


def test_coverage_is_kept(run: Run) -> None:
    """What a hermetic test covered is in the data on the host."""
    pytest.importorskip("pytest_cov")
    run.plugins += ("pytest_cov",)
    run.write("code.py", "def f(x):\n    if x:\n        return 1\n    return 2\n")
    run.tests("""
    import code_under
    @pytest.mark.parametrize("x", [0, 1])
    def test_it(x):
        code_under.f(x)
    """)
    (run.path / "code.py").rename(run.path / "code_under.py")
    result = run.isolated("--ns-profile=hermetic", "--cov=code_under", "--cov-report=term")
    result.expect(passed=2)
    line = next(line for line in result.out.splitlines() if line.startswith("code_under.py"))
    assert line.split()[-1] == "100%", str(result)


def test_several_at_once_and_xdist(run: Run) -> None:
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests("""
    @pytest.mark.parametrize("n", range(8))
    def test_it(n, pytestconfig):
        with open(pytestconfig.rootpath / "one", "x"):
            pass
        assert os.environ["HOME"] == "/tmp/home"
    """)
    run.isolated("--ns-profile=hermetic", "-n2", "--ns-jobs=2").expect(passed=8)
