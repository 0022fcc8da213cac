"""Wherever checkout, interpreter, HOME, TMPDIR and basetemp lie: one rule says what a test finds.

A placement is one run of pytest; what tests ask for (`specs`) is packed into it, a test for each.
Each test looks at every path that matters and writes to it; `expected` says what it has to meet.
Every two of the choices meet in some placement that is tried by default; with those of
``tox -e exhaustive`` every three do, for root and for a user without rights.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import pytest_nsisolate
from helpers.crippled import COMMON
from helpers.files import outside_of_all
from helpers.hosts import NOBODY, lacks_tmpfs_attributes
from helpers.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs("sandbox")

PLACES = ("tmp", "vartmp", "home", "shm", "run")
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")
#: Something is mounted there, as container engines do, and so lies in the way of an overlay.
MOUNTED = ("nothing", "checkout", "interpreter", "home", "tmpdir")


class Placement(NamedTuple):
    """Where things lie."""

    checkout: str
    interpreter: str
    home: str
    tmpdir: str
    basetemp: str
    mounted: str

    def __str__(self) -> str:
        return "-".join(self)


def placements(strength: int) -> list[Placement]:
    """Placements in which every *strength* choices of five meet: the values of polynomials."""
    found = []
    for number in range(5**strength):
        factors = [number // 5**power % 5 for power in range(strength)]
        values = [sum(f * x**power for power, f in enumerate(factors)) % 5 for x in range(5)]
        mounted = MOUNTED[factors[strength - 1]]
        found.append(Placement._make([*(PLACES[one] for one in values), mounted]))
    return found


USERS = ("root", "unprivileged")
USUAL = [(placement, USERS[number % 2]) for number, placement in enumerate(placements(2))]
OTHERS = [(placement, user) for placement in placements(3) for user in USERS]
TABLE = [
    *USUAL,
    *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in OTHERS if one not in USUAL),
]

TESTS = """
import json, os, pathlib, subprocess, sys, tempfile
import pytest

with open(os.path.join(os.path.dirname(__file__), "table.json")) as stream:
    TABLE = json.load(stream)

def look(path):
    if not os.path.lexists(path):
        return "absent"
    if not os.path.isdir(path):
        return "full" if os.path.lexists(path) else "absent"
    return "full" if os.path.exists(path + "/mark") else "bare"

def write(path, name):
    try:
        if os.path.isdir(path):
            open(f"{path}/{name}", "x").close()
        elif os.path.isfile(path):
            with open(path, "a") as stream:
                stream.write(name)
        else:
            return "-"
    except OSError as error:
        return type(error).__name__ + str(error.errno)
    return "written"

@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.isolated(**keys)) for name, keys in TABLE["specs"]],
)
def test_it(name, tmp_path, record_property):
    found = {path: look(path) for path in TABLE["paths"]}
    record_property("found", {path: [seen, write(path, name)] for path, seen in found.items()})
    (tmp_path / "new").write_text("x")
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/new", "x"):
            pass
    record_property("temporary", tempfile.gettempdir())
    record_property("home", os.path.expanduser("~"))
    assert os.path.isdir(os.path.expanduser("~")) or "rootfs" in name
    subprocess.run([sys.executable, "-I", "-c", "import json"], check=True)
    record_property("python", sys.prefix)
"""

HIDES_DIRECTORIES = lacks_tmpfs_attributes() is None


def below(path: str, top: str) -> bool:
    return path == top or path.startswith(top + "/")


@dataclass
class World:
    """Where everything is, for one run.

    Attributes:
        tops: what is to be removed in the end.
        paths: what tests look at; a directory has a file "mark".
    """

    placement: Placement
    uid: int | None
    tops: list[Path]
    homes: str
    checkout: str = ""
    prefix: str = ""
    tmpdir: str = ""
    basetemp: str = ""
    tree: str = ""

    def __post_init__(self) -> None:
        self.paths: list[str] = []

    def place(self, name: str, *, of_home: bool = False) -> str:
        """A new directory in the place of that name."""
        above = {"tmp": "/tmp", "vartmp": "/var/tmp", "shm": "/dev/shm", "run": "/run"}.get(name)
        if above is None:
            above = outside_of_all() if of_home else self.homes
        folder = tempfile.mkdtemp(prefix="nsisolate-nobody-", dir=above)
        if above != self.homes:
            self.tops.append(Path(folder))
        return self.fill(os.path.realpath(folder))

    def fill(self, path: str) -> str:
        """Make it a directory that tests look at."""
        os.makedirs(path, exist_ok=True)
        Path(path).chmod(0o755)
        Path(path, "mark").touch()
        self.paths.append(path)
        self.give(path)
        return path

    def give(self, path: str) -> None:
        if self.uid is not None:
            for one in (path, *map(str, Path(path).iterdir())):
                os.chown(one, self.uid, self.uid, follow_symlinks=False)


def build(placement: Placement, uid: int | None, tops: list[Path]) -> World:
    world = World(placement, uid, tops, "")
    world.homes = world.place(placement.home, of_home=True)
    world.checkout = world.place(placement.checkout)
    world.tmpdir = world.place(placement.tmpdir)
    world.basetemp = world.place(placement.basetemp) + "/base"
    world.prefix = world.place(placement.interpreter)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", world.prefix], check=True
    )
    (packages,) = Path(world.prefix).glob("lib/python*/site-packages")
    found = [*site.getsitepackages(), str(Path(pytest_nsisolate.__file__).parents[1])]
    (packages / "host.pth").write_text("\n".join(found))
    world.tree = world.place(placement.tmpdir)
    for pattern in ("lib/ld-linux*.so*", "lib64/ld-linux*.so*"):
        for loader in Path("/").glob(pattern):
            os.makedirs(world.tree + str(loader.parent), exist_ok=True)
            shutil.copy(loader, world.tree + str(loader))
    return world


class Asked(NamedTuple):
    """What one test asks for, with what the rule needs to know of it."""

    name: str
    keys: dict[str, Any]

    @property
    def fs(self) -> str:
        hermetic = "overlay" if "profile" in self.keys else "host"
        fs: str = self.keys.get("fs", hermetic)
        return "readonly" if fs == "host" and "rootfs" in self.keys else fs


def specs(world: World) -> list[Asked]:
    """Everything a test may ask for, times the paths that keys may name, in each place."""
    writable, hide, inner, outer = [], [], [], []
    for name in PLACES:
        world.place(name)  # nobody names it
        writable.append(world.place(name))
        hide.append(world.place(name))
        top = world.place(name)
        outer.append(top)
        inner.append(world.fill(top + "/inner"))
        outer.append(world.fill(top + "/inner/secret"))
        Path(top, "file").touch()
        world.give(top)
        writable.append(top + "/file")
        world.paths.append(top + "/file")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(writable[-2] + "/socket")
        beside = world.place(name)
        os.rename(writable[-2] + "/socket", beside + "/socket")
        writable.append(beside + "/socket")
        world.paths.append(beside + "/socket")
    # Hidden: the outer directory, and one in what is to be written to in it.
    both = {"hide": outer, "writable": inner}
    hiding: list[dict[str, Any]] = [{"hide": hide}, both]
    found = []
    for root in ({}, {"rootfs": world.tree}):
        for view in (
            {"fs": "host"},
            {"fs": "readonly"},
            {"fs": "overlay"},
            {"profile": "hermetic"},
        ):
            for named in ({}, {"writable": writable}, *hiding):
                if root and view == {"fs": "readonly"}:
                    continue  # as with the host's
                if "hide" in named and "readonly" not in view.values() and not HIDES_DIRECTORIES:
                    continue
                keys = {**root, **view, **named}
                found.append(Asked("+".join([*root, *view.values(), *named]), keys))
    return found


def expected(path: str, asked: Asked, world: World) -> tuple[str, str, bool]:
    """What a test sees of *path*, what comes of writing there, and whether the host has it then.

    The rule: of what is named, or needed, the nearest above a path counts. Checkout and
    interpreter are needed, and the home directory, unless the test has another one. The rest
    is as `fs` says, but in the private directories and in another root, where it is not.
    """
    keys = asked.keys
    own_home = "profile" in keys or "rootfs" in keys or _hidden(os.path.dirname(world.homes), keys)
    needed = [world.checkout, world.prefix, *([] if own_home else [world.homes])]
    kinds = {
        **dict.fromkeys(needed, "needed"),
        **dict.fromkeys(keys.get("hide", ()), "hidden"),
        **dict.fromkeys(keys.get("writable", ()), "host"),
    }
    if not own_home and _hidden(world.homes, keys):
        kinds[world.homes] = "needed"
    nearest = max((one for one in kinds if below(path, one)), key=len, default="")
    kind = kinds.get(nearest, "")
    if not kind and ("rootfs" in keys or path.startswith(PRIVATE)):
        kind = "hidden"
    if kind in ("", "needed"):
        kind = asked.fs
    # The test's own: it has to be able to write temporary files.
    own = [] if "profile" in keys else [world.tmpdir]
    if "rootfs" in keys and "profile" not in keys and world.homes.startswith(PRIVATE):
        own.append(world.homes)
    if path in own and kind in ("hidden", "readonly"):
        return "bare", "written", False
    if kind == "hidden":
        inside = [one for one in world.paths if one != path and below(one, path)]
        leads = below(world.basetemp, path) or any(
            expected(one, asked, world)[0] != "absent" for one in inside
        )
        if path in keys.get("hide", ()) and not leads:
            # An empty directory takes its place, where there would be one.
            others = [one for one in keys["hide"] if one != path]
            shown = Asked(asked.name, {**keys, "hide": others})
            leads = expected(path, shown, world)[0] != "absent"
        return "bare" if leads else "absent", "any", False
    results = {"host": ("written", True), "overlay": ("written", False)}
    what, stays = results.get(kind, ("OSError30", False))
    return "full", what, stays


def _hidden(path: str, keys: dict[str, Any]) -> bool:
    return any(below(path, one) for one in keys.get("hide", ()))


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[Placement, int | None], World]]:
    """Build the world of a placement, and remove it in the end."""
    tops: list[Path] = []
    try:
        yield lambda placement, uid: build(placement, uid, tops)
    finally:
        for path in tops:
            shutil.rmtree(path)


def started(world: World) -> list[str]:
    """The words that put another interpreter in the place of this one, with a mount made."""
    shell = shutil.which("sh")
    assert shell is not None
    words = [shell, "-c", 'shift; exec "$0" "$@"', f"{world.prefix}/bin/python"]
    target = {
        "checkout": world.checkout,
        "interpreter": world.prefix,
        "home": world.homes,
        "tmpdir": world.tmpdir,
    }.get(world.placement.mounted)
    if target is not None:
        words = [sys.executable, "-c", COMMON + MOUNT, target, *words]
    return words


MOUNT = """
unshare(NEWNS if os.geteuid() == 0 else NEWUSER | NEWNS)
bind(sys.argv[1], sys.argv[1])
del sys.argv[1]
done()
"""


@pytest.mark.parametrize(("placement", "user"), TABLE, ids=str)
def test_placement(
    make: Callable[[Placement, int | None], World],
    require_capability: Callable[[str], None],
    placement: Placement,
    user: str,
) -> None:
    """Each test finds, and may write to, just what the rule says."""
    require_capability(user)
    if os.geteuid() != 0 and not os.access("/run", os.W_OK):
        pytest.skip("this user can't write to /run")
    world = make(placement, NOBODY if user == "unprivileged" and os.geteuid() == 0 else None)
    asked = specs(world)
    table = {"specs": [(one.name, one.keys) for one in asked], "paths": world.paths}
    run = Run(path=Path(world.checkout), uid=world.uid)
    run.write("table.json", json.dumps(table))
    run.write("pytest.ini", "[pytest]\n")
    run.write("test_it.py", TESTS)
    world.give(world.checkout)
    env = {"HOME": world.homes, "TMPDIR": world.tmpdir}
    result = run(f"--basetemp={world.basetemp}", env=env, prefix=started(world))
    wrong = []
    for one in asked:
        if result.verdicts.get(f"test_it[{one.name}]") != "passed":
            wrong.append(f"{one.name}: {result.verdicts.get(f'test_it[{one.name}]')}")
            continue
        found = result.value(f"test_it[{one.name}]", "found")
        for path in world.paths:
            state, written, stays = expected(path, one, world)
            seen = [state, found[path][1] if written == "any" or _is_socket(path) else written]
            if found[path] != seen:
                wrong.append(f"{one.name}: {path}: {found[path]}, expected {seen}")
            if os.path.isdir(path) and os.path.exists(f"{path}/{one.name}") != stays:
                wrong.append(f"{one.name}: {path}: on the host: {not stays}")
        if "profile" not in one.keys:
            assert result.value(f"test_it[{one.name}]", "home") == world.homes
        assert result.value(f"test_it[{one.name}]", "python") == world.prefix
    assert not wrong, f"{len(wrong)} wrong\n" + "\n".join(wrong) + f"\n{world}\n{result}"


def _is_socket(path: str) -> bool:
    return path.endswith("/socket")


HOME_TESTS = """
    import tempfile
    @pytest.mark.parametrize("fs", [
        pytest.param(fs, marks=pytest.mark.isolated(fs=fs)) for fs in os.environ["VIEWS"].split()
    ])
    def test_it(tmp_path, fs):
        home = os.path.expanduser("~")
        assert open(home + "/note").read() == "at home"
        with tempfile.TemporaryDirectory() as folder:
            assert folder.startswith(os.environ["TMPDIR"] + "/")
        try:
            open(f"{home}/{fs}", "x").close()
        except OSError as error:
            assert error.errno == errno.EROFS
            assert fs == "readonly"
"""
EVERY = {"VIEWS": "host readonly overlay"}


@pytest.fixture
def homes() -> Iterator[Callable[[Run], dict[str, str]]]:
    """A home directory and one for temporary files below /tmp, apart from the checkout."""
    made: list[Path] = []

    def make(run: Run) -> dict[str, str]:
        top = Path(tempfile.mkdtemp(prefix="nsisolate-nobody-", dir="/tmp"))
        made.append(top)
        (top / "home").mkdir()
        (top / "home" / "note").write_text("at home")
        (top / "temporary").mkdir()
        for path in (top, *top.rglob("*")):
            os.chown(path, *((run.uid, run.uid) if run.uid is not None else (-1, -1)))
        return {"HOME": str(top / "home"), "TMPDIR": str(top / "temporary")}

    try:
        yield make
    finally:
        for path in made:
            shutil.rmtree(path)


@pytest.mark.parametrize(
    "scope", ["--ns-scope=function", "--ns-scope=module", "--ns-snapshot=module"]
)
def test_home_below_tmp(
    run_as_each: Run, homes: Callable[[Run], dict[str, str]], scope: str
) -> None:
    """It is there as any other, with what it holds, in snapshots too; TMPDIR is private."""
    views = {"VIEWS": "host"} if "snapshot" in scope else EVERY
    env = {**homes(run_as_each), **views}
    run_as_each.tests(HOME_TESTS)
    run_as_each.isolated(scope, env=env).expect(passed=len(views["VIEWS"].split()))
    assert sorted(os.listdir(env["HOME"])) == ["host", "note"]
    assert os.listdir(env["TMPDIR"]) == []


def test_links(run_as_each: Run, homes: Callable[[Run], dict[str, str]]) -> None:
    """HOME and TMPDIR may be symbolic links."""
    env = {**homes(run_as_each), **EVERY}
    for name in ("HOME", "TMPDIR"):
        os.symlink(env[name], env[name] + "-link")
        env[name] += "-link"
    run_as_each.tests(HOME_TESTS)
    run_as_each.isolated(env=env).expect(passed=3)


@pytest.mark.parametrize("home", ["/tmp", "/", "", "relative", "/nowhere", "closed", "/tmp/home"])
def test_homes_that_are_none(run_as_each: Run, home: str) -> None:
    """Whatever HOME says, tests run; a private directory stays private."""
    if home == "closed":
        folder = run_as_each.path / "closed"
        folder.mkdir()
        folder.chmod(0)
        home = str(folder)
    run_as_each.tests("""
    @pytest.mark.parametrize("fs", [
        pytest.param(fs, marks=pytest.mark.isolated(fs=fs)) for fs in os.environ["VIEWS"].split()
    ])
    def test_it(fs):
        assert os.listdir("/var/tmp") == []
        open("/tmp/new", "x").close()
    """)
    env = {"HOME": home, "TMPDIR": home, **EVERY}
    result = run_as_each.isolated("test_it.py", env=env)
    if home.endswith("closed"):
        os.chmod(home, 0o700)  # to be removed
    result.expect(passed=3)
    assert not os.path.exists("/tmp/new")


def test_environment_of_a_test_counts(
    run_as_each: Run, homes: Callable[[Run], dict[str, str]]
) -> None:
    """A test that has another HOME and TMPDIR finds those, and a hermetic one its own."""
    env = homes(run_as_each)
    other = homes(run_as_each)
    run_as_each.tests(f"""
    import tempfile

    @pytest.mark.isolated(env={other!r})
    def test_other():
        assert open(os.path.expanduser("~/note")).read() == "at home"
        assert tempfile.gettempdir() == {other["TMPDIR"]!r}
        tempfile.mkdtemp()
        assert not os.path.exists({env["HOME"]!r})

    @pytest.mark.isolated(profile="hermetic")
    def test_hermetic():
        assert os.listdir(os.path.expanduser("~")) == []
        assert not os.path.exists({env["HOME"]!r})

    @pytest.mark.isolated(profile="hermetic", env="inherit")
    def test_inherits():
        assert open({env["HOME"] + "/note"!r}).read() == "at home"
    """)
    run_as_each(env=env).expect(passed=3)


def test_socket_in_a_home_below_tmp(
    run_as_each: Run, homes: Callable[[Run], dict[str, str]]
) -> None:
    """A hermetic test that inherits HOME does not find the agent that listens in it."""
    env = homes(run_as_each)
    agent = env["HOME"] + "/agent"
    run_as_each.tests(f"""
    def is_out_of_reach():
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):
            client.connect({agent!r})

    @pytest.mark.isolated(profile="hermetic", env="inherit")
    def test_overlay():
        is_out_of_reach()

    @pytest.mark.isolated(profile="hermetic", env="inherit", fs="readonly")
    def test_readonly():
        is_out_of_reach()
    """)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(agent)
        listener.listen()
        Path(agent).chmod(0o777)
        run_as_each(env={**env, "SSH_AUTH_SOCK": agent}).expect(passed=2)


def test_hidden_and_writable_at_once(run: Run) -> None:
    """One path can't be both; whichever way it is named."""
    (run.path / "data").mkdir()
    (run.path / "link").symlink_to("data")
    run.tests("""
    @pytest.mark.isolated(hide=["data"], writable=["link"])
    def test_it():
        pass
    """)
    result = run()
    assert result.ret == 4, str(result)
    for part in ("hide='data'", "writable='link'", str(run.path / "data"), "allowed"):
        assert part in result.out + result.err


def test_many_files_and_a_mount_below_tmp(run_as_each: Run) -> None:
    """However long the list of /tmp is: the checkout in it can be written to."""
    top = Path(tempfile.mkdtemp(prefix="nsisolate-nobody-", dir="/tmp"))
    try:
        checkout = top / "project"
        checkout.mkdir()
        run = Run(path=checkout, uid=run_as_each.uid)
        run.tests("""
        def test_it():
            open("new", "x").close()
            assert len(os.listdir("/tmp")) < 10
        """)
        for path in (top, *top.rglob("*")):
            os.chown(path, *((run.uid, run.uid) if run.uid is not None else (-1, -1)))
        # In a /tmp of its own, that nobody else has to put up with.
        words = [sys.executable, "-c", COMMON + CROWD, str(top)]
        run.isolated("--ns-fs=overlay", prefix=words).expect(passed=1)
        assert not (checkout / "new").exists()
    finally:
        shutil.rmtree(top)


CROWD = """
import importlib.util
unshare(NEWNS if os.geteuid() == 0 else NEWUSER | NEWNS)
top = sys.argv[1]
# The interpreter and the plugin may be below /tmp as well.
package = os.path.dirname(importlib.util.find_spec("pytest_nsisolate").origin)
needed = {top, sys.prefix, sys.base_prefix, os.path.dirname(package)}
kept = {path: os.open(path, os.O_PATH) for path in needed if path.startswith("/tmp/")}
check("/tmp", libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
for number in range(600):
    open(f"/tmp/{number}", "x").close()
for path, folder in sorted(kept.items()):
    os.makedirs(path, exist_ok=True)
    bind(f"/proc/self/fd/{folder}", path)
os.chdir(top + "/project")
del sys.argv[1]
done()
"""


def test_one_command(homes: Callable[[Run], dict[str, str]], run: Run) -> None:
    """`nsisolate run` brings HOME and TMPDIR as well."""
    env = {**os.environ, **homes(run)}
    script = 'cat "$HOME/note" && mktemp >/dev/null && ls "$TMPDIR" | wc -l'
    done = subprocess.run(
        [sys.executable, "-m", "pytest_nsisolate", "run", "--quiet", "--", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=env,
        cwd="/",
        check=False,
    )
    assert done.stdout.split() == ["at", "home1"], done.stdout + done.stderr
    assert os.listdir(env["TMPDIR"]) == []
