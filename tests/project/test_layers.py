"""Each folder imports what its table entry allows, and no module is part of a circle.

`problems` looks at a directory, so that the tests plant one violation of each kind in a copy of
the package and expect it to be found.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "pytest_nsisolate"


class Folder(NamedTuple):
    """What the modules of a folder may import, beside each other.

    Attributes:
        imports: folders and single modules.
        typing: the same, but only for annotations (``if TYPE_CHECKING:``).
        pytest: whether they may import pytest.
    """

    imports: tuple[str, ...] = ()
    typing: tuple[str, ...] = ()
    pytest: bool = False


_NETWORK = ("network.topology", "network.uplink")
_SANDBOX = ("sandbox", "sandbox.operations")
_CORE = ("core", "core.linux")

FOLDERS: dict[str, Folder] = {
    "core.linux": Folder(("core.errors",)),
    "core": Folder(("core.linux",)),
    "spec": Folder(_CORE),
    "explain": Folder(("spec", *_CORE)),
    "sandbox.operations": Folder(_CORE),
    "sandbox": Folder(("sandbox.operations", *_CORE)),
    "cgroups": Folder(("spec", *_CORE)),
    "files": Folder((*_SANDBOX, "spec", *_CORE)),
    "network.topology": Folder(("explain", "spec", *_CORE)),
    "network.uplink": Folder(("network.topology", "spec", *_CORE), ("sandbox",)),
    "reports": Folder(("explain", "spec", *_CORE), pytest=True),
    "testprocess": Folder(
        ("reports", *_NETWORK, "files", "cgroups", *_SANDBOX, "explain", "spec", *_CORE),
        pytest=True,
    ),
    "runner.kept": Folder(("cgroups", *_SANDBOX, "spec", *_CORE), ("runner",)),
    "runner.servers": Folder((*_SANDBOX, *_CORE, "runner.events"), ("runner.timeline",)),
    "runner": Folder(
        ("runner.servers", "cgroups", *_SANDBOX, "spec", *_CORE),
        ("runner.kept", "network.uplink.session", "files.artifact_policy"),
    ),
    "cli": Folder(
        ("runner.kept", *_NETWORK, "files", "cgroups", *_SANDBOX, "explain", "spec", *_CORE),
    ),
    "plugin": Folder(
        (
            *(
                "cli.doctor",
                "runner",
                "runner.servers",
                "runner.kept",
                "testprocess",
                "reports",
                *_NETWORK,
            ),
            *("files", "cgroups", *_SANDBOX, "explain", "spec", *_CORE),
        ),
        pytest=True,
    ),
    "": Folder(("cli.main",)),
}
"""By the name of the folder, with dots; the last one is the package itself."""

#: A folder that has only folders in it.
ONLY_FOLDERS = frozenset({"network"})

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports that the table forbids, each with its reason."""

LATE: dict[str, frozenset[str]] = {
    "pyroute2": frozenset({"network.topology.link_messages", "network.topology.shaping"}),
    "filelock": frozenset({"core.locks"}),
}
"""Libraries that are imported within functions, because they cost much, and by whom."""

MOST_MODULES = 16
MOST_LINES, MOST_METHODS = 350, 25
#: How the comment begins that says why a class is larger, on the line above it.
REASON = "# One class: "


class Bare(NamedTuple):
    """What a process in a bare interpreter loads: each costs time when it starts.

    Attributes:
        own: modules of the package; it has these loaded when its ``main`` begins.
        library: modules of the standard library that these import.
    """

    own: frozenset[str]
    library: frozenset[str]


_SYSCALLS = ("core.errors", "core.linux.syscalls")
_OPERATIONS = ("clock", "loopback", "mounts", "namespaces", "overlay_layers", "plan", "steps")
_C_LIBRARY = ("ctypes", "errno", "os", "signal", "struct", "sys")

BARE: dict[str, Bare] = {
    "sandbox.keeper": Bare(
        frozenset(
            [
                *(*_SYSCALLS, "core.artifacts", "core.copying", "core.wire"),
                *("core.linux.kernel_files", "core.linux.link_setup", "core.linux.mountinfo"),
                *("core.linux.netlink", "core.linux.proc"),
                *("sandbox.builder", "sandbox.collect", "sandbox.init", "sandbox.keeper"),
                *(f"sandbox.operations.{one}" for one in _OPERATIONS),
            ]
        ),
        frozenset(
            [
                *(*_C_LIBRARY, "contextlib", "fnmatch", "gc", "json", "re", "select", "socket"),
                *("stat", "time", "typing"),
            ]
        ),
    ),
    "network.uplink.relay": Bare(
        frozenset([*_SYSCALLS, "core.linux.netlink", "network.uplink.relay"]),
        frozenset([*_C_LIBRARY, "contextlib", "resource", "select", "socket", "time"]),
    ),
    "runner.kept.custodian": Bare(
        frozenset(
            [
                *(*_SYSCALLS, "core.bare_process", "core.locks", "core.usage", "core.wire"),
                *("core.linux.kernel_files", "core.linux.mountinfo"),
                *("core.linux.namespace_files", "core.linux.proc"),
                *("runner.kept.custodian", "runner.kept.registry"),
                *("spec.bounds", "spec.keys", "spec.limits"),
                *("cgroups.delegation", "cgroups.devices", "cgroups.disk"),
                *("cgroups.group", "cgroups.layout", "cgroups.session", "cgroups.v1"),
                "cgroups.v2",
            ]
        ),
        frozenset(
            [
                *(*_C_LIBRARY, "contextlib", "dataclasses", "enum", "fcntl", "filelock", "glob"),
                *("json", "re", "resource", "select", "socket", "stat", "subprocess"),
                *("tempfile", "time", "typing", "warnings"),
            ]
        ),
    ),
    "core.tied_program": Bare(
        frozenset([*_SYSCALLS, "core.tied_program"]),
        frozenset(_C_LIBRARY),
    ),
}
"""By the module that runs in it. PID 1 of a sandbox is a fork of the keeper."""

BARE_LATE: dict[tuple[str, str], str] = {
    ("sandbox.operations.plan", "sandbox.operations.roots"): "for another view of the files",
    ("network.uplink.relay", "!resource"): "once, when there are many connections",
    ("core.locks", "!filelock"): "in a fork of its own, see there",
}
"""What their modules import within functions, each with its reason."""


def location() -> Path:
    """The package under test, wherever it is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, f"{PACKAGE} is not installed"
    assert spec.origin
    return Path(spec.origin).parent


class Import(NamedTuple):
    """One import of a module.

    Attributes:
        target: of the package, without its name; another library's with it behind a "!".
        late: whether it is within a function.
        typing: whether it is for annotations only.
    """

    target: str
    late: bool
    typing: bool


class Module(NamedTuple):
    """A module: its name without that of the package, its folder, and its syntax tree."""

    name: str
    folder: str
    path: Path
    tree: ast.Module


@functools.cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a module, which nobody changes."""
    return ast.parse(text)


def modules(root: Path) -> dict[str, Module]:
    """All modules of the package in *root*; a folder's own is named as the folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        folder = ".".join(parts[:-1])
        name = folder if parts[-1] == "__init__" else ".".join(parts)
        found[name] = Module(name, folder, path, parsed(path.read_text("utf-8")))
    return found


def own(name: str) -> str:
    """A name of the package without the package's, that of another library behind a "!"."""
    first, _, rest = name.partition(".")
    return rest if first == PACKAGE else f"!{first}"


def targets(
    node: ast.Import | ast.ImportFrom, module: Module, known: dict[str, Module]
) -> Iterator[str]:
    """What a statement imports; ``from x import y`` imports y where y is a module."""
    if isinstance(node, ast.Import):
        yield from (own(alias.name) for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = [PACKAGE, *(module.folder.split(".") if module.folder else [])]
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, base] if base else parts)
    for alias in node.names:
        inner = own(f"{base}.{alias.name}")
        yield inner if inner in known else own(base)


def is_for_typing(node: ast.AST) -> bool:
    """Whether this is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    """What a module imports: at its top, within functions, and for annotations."""

    def visit(node: ast.AST, *, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (Import(one, late, typing) for one in targets(node, module, known))
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        guarded = node.body if isinstance(node, ast.If) and is_for_typing(node) else []
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late=late, typing=typing or child in guarded)

    return visit(module.tree, late=False, typing=False)


def allows(names: tuple[str, ...], target: Module) -> bool:
    return target.folder in names or target.name in names


def forbidden(known: dict[str, Module]) -> set[tuple[str, str]]:
    """Imports that the table of folders does not allow."""
    found = set()
    for module in known.values():
        folder = FOLDERS.get(module.folder)
        if folder is None:
            continue
        for one in imports(module, known):
            target = known.get(one.target)
            if target is None or target.folder == module.folder or not target.name:
                continue
            may = folder.imports + (folder.typing if one.typing else ())
            if not allows(may, target):
                found.add((module.name, target.name))
    return found


def circles(known: dict[str, Module]) -> list[list[str]]:
    """Groups of modules that import each other, typing imports counted."""
    edges = {
        name: {one.target for one in imports(module, known) if one.target in known} - {name, ""}
        for name, module in known.items()
    }
    reach: dict[str, set[str]] = {}
    for name in edges:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        reach[name] = seen
    groups = {
        tuple(sorted({name, *(one for one in reach[name] if name in reach[one])}))
        for name in edges
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def libraries(known: dict[str, Module]) -> Iterator[str]:
    """Who imports pytest, or a costly library, and may not."""
    for module in known.values():
        folder = FOLDERS.get(module.folder, Folder())
        for one in imports(module, known):
            library = one.target.removeprefix("!")
            if library in ("pytest", "_pytest") and not folder.pytest:
                yield f"{module.name} imports pytest"
            elif one.target.startswith("!") and library in LATE:
                if module.name not in LATE[library]:
                    yield f"{module.name} imports {library}"
                elif not (one.late or one.typing):
                    yield f"{module.name} imports {library} at its top"


def shapes(known: dict[str, Module]) -> Iterator[str]:
    """Files without a rule, folders and classes that are too large, code in an ``__init__``."""
    counts: dict[str, int] = {}
    for module in known.values():
        if module.folder not in FOLDERS and module.name not in ONLY_FOLDERS:
            yield f"no rule covers {module.path.name} in {module.folder or PACKAGE}"
        if module.path.name == "__init__.py":
            if not ast.get_docstring(module.tree):
                yield f"{module.name}/__init__.py says nothing"
            if module.name and len(module.tree.body) > 1:
                yield f"{module.name}/__init__.py has code"
        else:
            counts[module.folder] = counts.get(module.folder, 0) + 1
        lines = module.path.read_text("utf-8").splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                methods = sum(isinstance(one, ast.FunctionDef) for one in node.body)
                length = (node.end_lineno or 0) - node.lineno + 1
                small = length <= MOST_LINES and methods <= MOST_METHODS
                if not small and not lines[first - 2].startswith(REASON):
                    yield f"{module.name}.{node.name} has {length} lines and {methods} methods"
    for name, count in counts.items():
        if count > MOST_MODULES:
            yield f"{name} has {count} modules"


def problems(root: Path) -> list[str]:
    """What is wrong with the imports and the shape of the package in *root*."""
    known = modules(root)
    upward = forbidden(known)
    found = [f"{one} imports {other}" for one, other in sorted(upward - EXCEPTIONS.keys())]
    found += [f"{one} no longer imports {other}" for one, other in EXCEPTIONS.keys() - upward]
    found += [f"circle: {' '.join(group)}" for group in circles(known)]
    return [*found, *libraries(known), *shapes(known)]


def loaded(root: Path, module: str) -> set[str]:
    """The modules of the package that a bare process has loaded when its ``main`` begins."""
    code = (
        f"import sys; sys.path.append({str(root.parent)!r}); "
        f"from {PACKAGE}.{module} import main; print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    names = {name.partition(".") for name in done.stdout.split()}
    return {rest for first, _, rest in names if first == PACKAGE} - FOLDERS.keys() - ONLY_FOLDERS


def bare_problems(root: Path, module: str) -> list[str]:
    """Where a bare process and its table differ, and what its modules import late."""
    own, known = loaded(root, module), modules(root)
    table = BARE[module]
    found = [f"{module} loads {name}" for name in sorted(own - table.own)]
    found += [f"{module} does not load {name}" for name in sorted(table.own - own)]
    used = [(name, one) for name in sorted(own) for one in imports(known[name], known)]
    library = {one.target[1:] for _, one in used if one.target.startswith("!") and not one.typing}
    library.discard("__future__")
    found += [f"{module} loads {name}" for name in sorted(library - table.library)]
    found += [f"{module} does not load {name}" for name in sorted(table.library - library)]
    late = {(name, one.target) for name, one in used if one.late and not one.typing}
    return found + [f"{name} imports {one} late" for name, one in sorted(late - BARE_LATE.keys())]


def test_the_package_keeps_the_rules() -> None:
    assert problems(location()) == []


def test_the_table_names_what_there_is() -> None:
    known = modules(location())
    folders = {module.folder for module in known.values()} | ONLY_FOLDERS
    assert {*FOLDERS} | ONLY_FOLDERS == folders
    named = {one for folder in FOLDERS.values() for one in folder.imports + folder.typing}
    assert named <= folders | known.keys()
    for library, users in LATE.items():
        found = {
            name
            for name, module in known.items()
            if any(one.target == f"!{library}" for one in imports(module, known))
        }
        assert found == users, library


@pytest.mark.parametrize("module", BARE)
def test_bare_processes_load_little(module: str) -> None:
    assert bare_problems(location(), module) == []


PLANTED = {
    "upward": ("core/wire.py", "from pytest_nsisolate.runner import deadlines", "core.wire"),
    "by a name": ("core/wire.py", "import pytest_nsisolate.runner.deadlines", "core.wire"),
    "relative": ("spec/keys.py", "from ..runner import deadlines", "spec.keys imports runner"),
    "two levels": (
        *("runner/kept/live.py", "from ...plugin.hooks import sandbox"),
        "runner.kept.live imports plugin.hooks",
    ),
    "late": ("core/wire.py", "def f():\n    from ..cli import main", "core.wire imports cli.main"),
    "for typing": (
        *("core/wire.py", "if TYPE_CHECKING:\n    from ..spec.spec import Spec"),
        "core.wire imports spec.spec",
    ),
    "typing alone is allowed": (
        *("runner/deadlines.py", "from ..files import artifact_policy"),
        "runner.deadlines imports files.artifact_policy",
    ),
    "circle in a folder": (
        *("core/usage.py", "from . import outcome"),
        "circle: core.outcome core.usage",
    ),
    "circle for typing": (
        *("core/usage.py", "if TYPE_CHECKING:\n    from . import outcome"),
        "circle: core.outcome core.usage",
    ),
    "circle of two folders": (
        *("explain/host_facts.py", "def f():\n    from ..network.topology import per_test"),
        "circle: explain.",
    ),
    "pytest": ("runner/scheduler.py", "import pytest", "runner.scheduler imports pytest"),
    "its insides": ("core/wire.py", "from _pytest import nodes", "core.wire imports pytest"),
    "pyroute2": ("core/wire.py", "def f():\n    import pyroute2", "core.wire imports pyroute2"),
    "early": ("core/locks.py", "from filelock import FileLock", "filelock at its top"),
    "new folder": ("other/new.py", "", "no rule covers new.py in other"),
    "new file above": ("new/deep/er.py", "", "no rule covers er.py in new.deep"),
    "code in a folder": ("core/__init__.py", "VALUE = 1", "core/__init__.py has code"),
    "long class": ("core/wire.py", "class C:\n" + "    x = 1\n" * 400, "core.wire.C has 401"),
    "many methods": (
        *("core/wire.py", "class C:\n" + "    def f(self): ...\n" * 26),
        "core.wire.C has 27 lines and 26 methods",
    ),
}  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package."""
    root = tmp_path / PACKAGE
    shutil.copytree(location(), root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(copy: Path, name: str) -> None:
    file, code, expected = PLANTED[name]
    path = copy / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{code}\n")
    assert any(expected in one for one in problems(copy)), problems(copy)


def test_a_folder_with_too_many_modules_is_found(copy: Path) -> None:
    for number in range(MOST_MODULES):
        (copy / "core" / f"new{number}.py").write_text("")
    assert any(one.startswith("core has ") for one in problems(copy))


@pytest.mark.parametrize("module", BARE)
@pytest.mark.parametrize(
    "code", ["import decimal", "from ...spec import paths", "def f(): import abc"]
)
def test_a_planted_import_of_a_bare_process_is_found(copy: Path, module: str, code: str) -> None:
    with (copy / "core" / "linux" / "syscalls.py").open("a", encoding="utf-8") as stream:
        stream.write(f"\n{code}\n")
    assert bare_problems(copy, module)
