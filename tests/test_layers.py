"""Imports point downward only, and each layer imports no more than it may."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

PACKAGE = "pytest_nsisolate"
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__main__"}),
    frozenset({"plugin", "cli"}),
    frozenset({"isolation", "groups", "command", "request", "enter", "listing"}),
    frozenset({"attended"}),
    frozenset(
        {
            "fixtures",
            "hookspecs",
            "options",
            "keypaths",
            "body",
            "snapshot",
            "rehearsal",
            "dialogue",
            "sandboxfixture",
            "recording",
            *("topologies", "network", "host", "link"),
        }
    ),
    frozenset({"planning", "keepsakes", "replay"}),
    frozenset({"rebuilding", "report", "doctor", "networkprobe", "explain", "compat", "capture"}),
    frozenset({"meaningnet", "meaningfiles", "meaninglimits"}),
    frozenset({"meanings"}),
    frozenset({"covdata", "plugindata", "soundness"}),
    frozenset({"views"}),
    frozenset({"foreign", "hide", "rootfs"}),
    frozenset({"libraries"}),
    frozenset({"usagetable", "files", "trace"}),
    frozenset(
        {
            "runner",
            "flight",
            "deadlines",
            "floods",
            "snapshots",
            "source",
            "attempt",
            "pool",
            "console",
            "template",
            "sandbox",
            "keeperprocess",
            "accounting",
            "capacity",
            "budget",
            "launch",
            "retention",
            "outside",
            *("keeping", "custody", "living"),
        }
    ),
    frozenset(
        {
            "child",
            "guard",
            "hints",
            "trimming",
            "init",
            "keeper",
            "builder",
            "outcome",
            "stream",
            "prefault",
            "rawfork",
            "hugepages",
            "rlimits",
            "garbage",
            "brief",
            "processtree",
            "nsview",
            "usage",
            "export",
            "settings",
            "hostsockets",
            "furnish",
            "forward",
            "relay",
            "usernat",
            "resolver",
        }
    ),
    frozenset({"artifacts"}),
    frozenset({"copying"}),
    frozenset({"surroundings", "witness"}),
    frozenset({"plan"}),
    frozenset({"roots", "overlay", "cgroupsession", "veth", "register"}),
    frozenset({"nat"}),
    frozenset(
        {"cgroup", "delegation", "slots", "net", "mounts", "layers", "namespaces", "perfevents"}
        | {"clock", "fabric", "switchboard", "crossbar", "rtnl", "linkops", "queueops", "pcap"}
    ),
    frozenset({"cgroupv2", "blockdevice", "devicefilter"}),
    frozenset({"cgroupv1"}),
    frozenset({"rootsteps", "hosttree"}),
    frozenset({"cgroupfs", "steps", "netlink", "addresses"}),
    frozenset({"spec"}),
    frozenset({"profile", "holds"}),
    frozenset({"values", "limits"}),
    frozenset({"keys", "bounds", "runaway", "topology", "shaping"}),
    frozenset({"wire", "syscalls", "terminal"}),
    frozenset({"facts"}),
)
"""From the top to the bottom; a module imports from its own layer and those below."""

KNOWS_PYTEST = frozenset(
    {
        "plugin",
        "fixtures",
        "hookspecs",
        "isolation",
        "planning",
        "keepsakes",
        "groups",
        "options",
        "report",
        "rebuilding",
        "soundness",
        "replay",
        "brief",
        "recording",
        # the test side's body, and what only it and the plugin use
        "body",
        "snapshot",
        "rehearsal",
        "dialogue",
        "capture",
        "compat",
        "sandboxfixture",
    }
)
"""Who may import pytest: the sandbox half is usable and testable without it."""

KNOWS_PYROUTE2 = frozenset({"linkops", "queueops"})
"""Its import costs some 0.3 s, so it is done by one, within a function."""

KNOWS_FILELOCK = frozenset({"slots"})
"""Needed only where cgroups or links are made."""

BARE = frozenset({"keeper", "init", "relay"})
"""Started bare, or forked for every sandbox: whatever they import is paid for every time."""
BARE_MAY_IMPORT = frozenset(
    {"collections", "contextlib", "ctypes", "errno", "fcntl", "gc", "os", "resource"}
    | {"select", "signal", "socket", "struct", "sys", "time", "typing"}
)
BARE_MAY_USE = frozenset(
    [
        "plan",
        "mounts",
        "layers",
        "namespaces",
        "net",
        "netlink",
        "clock",
        "roots",
        "rootsteps",
        "cgroup",
        "steps",
        "spec",
        "wire",
        "syscalls",
        "facts",
        "artifacts",
        "copying",
        "init",
        "keeper",
        "builder",
    ]
)

EXCEPTIONS: frozenset[tuple[str, str]] = frozenset()
"""Imports that point upward, each with its reason."""


def sources() -> dict[str, Path]:
    """The modules of the package under test, wherever it is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, f"{PACKAGE} is not installed"
    assert spec.origin
    folder = Path(spec.origin).parent
    return {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}


def is_for_typing(node: ast.stmt) -> bool:
    """Whether this is ``if TYPE_CHECKING:``, which imports nothing at run time."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """What a module imports at run time; a leading dot marks the package's own modules."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.stmt) and is_for_typing(node):
            return
        if top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(absolute(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(named_in(node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def absolute(name: str) -> str:
    """The first part of an imported name, or the own module behind a dot."""
    first, _, rest = name.partition(".")
    return "." + rest.partition(".")[0] if first == PACKAGE else first


def named_in(node: ast.ImportFrom) -> set[str]:
    """What ``from x import y`` imports; ``from . import y`` imports y."""
    module = node.module or ""
    if node.level == 0 and module != PACKAGE:
        return {absolute(module)}
    if node.level and module:
        return {"." + module.partition(".")[0]}
    return {"." + alias.name for alias in node.names if not alias.name.startswith("__")}


def level(name: str) -> int:
    """How far below the top a module's layer is."""
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert len(found) == 1, f"{name} has to stand in one layer of the table, not {len(found)}"
    return found[0]


def test_every_module_has_its_layer() -> None:
    """A new module has to be placed in the table."""
    modules = sources()
    assert modules
    for name in modules:
        level(name)


def test_imports_point_downward() -> None:
    """No module imports one of a layer above it, not even late."""
    upward = {
        (name, target[1:])
        for name, path in sources().items()
        for target in imports(path)
        if target.startswith(".") and level(target[1:]) < level(name)
    }
    assert upward <= EXCEPTIONS
    assert upward == EXCEPTIONS, "an exception that is no longer needed"


@pytest.mark.parametrize(
    ("libraries", "allowed"),
    [
        ({"pytest", "_pytest"}, KNOWS_PYTEST),
        ({"pyroute2"}, KNOWS_PYROUTE2),
        ({"filelock"}, KNOWS_FILELOCK),
    ],
    ids=["pytest", "pyroute2", "filelock"],
)
def test_who_imports_a_library(libraries: set[str], allowed: frozenset[str]) -> None:
    """Few modules know pytest, and one knows pyroute2."""
    users = {name for name, path in sources().items() if imports(path) & libraries}
    assert users <= allowed


def test_costly_libraries_are_imported_late() -> None:
    """No module imports them when it is itself imported."""
    for name, path in sources().items():
        assert not imports(path, top_only=True) & {"pyroute2", "filelock"}, name


@pytest.mark.parametrize("name", sorted(BARE))
def test_bare_modules_import_little(name: str) -> None:
    """keeper and init, and all that they pull in, import a few small modules."""
    modules, todo, seen = sources(), [name], set()
    while todo:
        current = todo.pop()
        seen.add(current)
        found = imports(modules[current])
        own = {target[1:] for target in found if target.startswith(".")}
        assert own <= BARE_MAY_USE, current
        if current in BARE:
            library = {target for target in found if not target.startswith(".")}
            assert library - {"__future__"} <= BARE_MAY_IMPORT, current
        todo += own - seen


def test_the_inside_imports_nothing_late() -> None:
    """What runs inside a sandbox has all its imports done before the fork."""
    modules = sources()
    for name in ("child", "init", "keeper"):
        assert imports(modules[name]) == imports(modules[name], top_only=True), name
