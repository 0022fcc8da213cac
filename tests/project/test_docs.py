"""The documents: links lead somewhere, and tables name what the code has, all of it."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_nsisolate
from helpers.project import ROOT
from pytest_nsisolate.cgroups import perf_counters
from pytest_nsisolate.cli import main
from pytest_nsisolate.core.outcome import Kind
from pytest_nsisolate.plugin import hookspecs, options
from pytest_nsisolate.spec import holds, keys, parsing
from pytest_nsisolate.testprocess.sandbox_info import SandboxInfo

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [ROOT / "tools" / "bench" / "README.md"]
#: Those that speak of the code.
OF_THE_CODE = [
    *(f"docs/{name}.md" for name in ("architecture", "how-it-works", "performance", "testing")),
    "CONTRIBUTING.md",
]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.+)$", FENCE.sub("", document.read_text("utf-8")), re.MULTILINE
    ):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = 0
        while f"{slug}-{number}" in found if number else slug in found:
            number += 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(document: Path) -> None:
    text = FENCE.sub("", document.read_text("utf-8"))
    text = re.sub(r"`[^`\n]*`", "", text)
    links = re.findall(r"\[[^]]*\]\(([^)\s]+)\)", text)
    assert links or document != ROOT / "README.md"
    broken = []
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = document if not name else document.parent / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_document_can_be_found() -> None:
    """From the README, over links between documents."""
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        document = ahead.pop()
        seen.add(document)
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8")):
            target = (document.parent / link).resolve()
            if target.suffix == ".md" and target not in seen and target.exists():
                ahead.append(target)
    assert {path for path in DOCUMENTS if path not in seen} == set()


def test_the_table_of_folders_is_up_to_date() -> None:
    """It is written by the tool; see there for its sources."""
    command = [sys.executable, str(ROOT / "tools" / "architecture.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("name", OF_THE_CODE)
def test_modules_are_named_with_their_folders(name: str) -> None:
    """From the top of the package or of the checkout."""
    package = Path(pytest_nsisolate.__file__).parent
    words = quoted(FENCE.sub("", (ROOT / name).read_text("utf-8")))
    paths = {word for word in words if re.fullmatch(r"[\w/]+\.py", word)}
    assert paths
    places = (package, package.parent, ROOT)
    assert not {path for path in paths if not any((place / path).is_file() for place in places)}


def rows_of(section: str) -> list[list[str]]:
    """The cells of each row of the table of a section of the reference."""
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, section
    rows = [line for line in found[1].splitlines() if line.startswith("|")][2:]
    return [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]


def quoted(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def named(section: str) -> list[str]:
    """What the first column of that table names."""
    return [name for row in rows_of(section) for name in quoted(row[0])]


class Parser:
    """Takes down what a plugin declares, in the place of pytest's own parser."""

    def __init__(self) -> None:
        self.options: list[str] = []
        self.settings: list[str] = []

    def getgroup(self, *_: object) -> Parser:
        return self

    def addoption(self, name: str, **_: object) -> None:
        self.options.append(name)

    def addini(self, name: str, *_: object, **__: object) -> None:
        self.settings.append(name)


@pytest.fixture
def declared() -> Parser:
    parser = Parser()
    options.add(parser)  # type: ignore[arg-type]  # all that it asks of one
    return parser


def test_keys() -> None:
    assert sorted(named("The marker")) == sorted(keys.KEYS)


def test_defaults() -> None:
    """The last column has a value, or words for None."""
    for row in rows_of("The marker"):
        value = ast.literal_eval("".join(quoted(row[-1])) or "None")
        for name in quoted(row[0]):
            assert parsing.parse_value(name, value, name) == keys.KEYS[name].default, name


def test_what_goes_with_a_snapshot() -> None:
    """The reference lists the keys, and the values, that are an error with it."""
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    (sentence,) = re.findall(
        r"^`scope` goes with.* with (.*) it is a usage error", text, re.MULTILINE
    )
    refused = {name for name, key in keys.KEYS.items() if key.with_snapshot == ()}
    assert {name.partition("=")[0] for name in quoted(sentence)} == {*refused, "net"}
    assert keys.KEYS["net"].with_snapshot == ("host",)


def test_options(declared: Parser) -> None:
    of_keys = {f"--ns-{name.replace('_', '-')}" for name in keys.KEYS}
    others = {name for name in declared.options if name not in of_keys}
    words = [word for name in named("Options") for word in re.findall(r"--ns-[\w-]+", name)]
    assert of_keys <= set(declared.options)
    assert sorted({word for word in words if not word.endswith("-")}) == sorted(others)


def test_settings(declared: Parser) -> None:
    of_keys = {f"nsisolate_{name}" for name in keys.KEYS}
    others = {name for name in declared.settings if name not in of_keys}
    assert of_keys <= set(declared.settings)
    assert sorted(named("Ini settings")) == sorted([*others, "nsisolate_<key>"])


def test_hooks() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("pytest_nsisolate_")]
    assert sorted(name.partition("(")[0] for name in named("Hooks")) == sorted(hooks)


def test_fixture() -> None:
    attributes = {name for name in vars(SandboxInfo) if not name.startswith("_")} | {"id", "spec"}
    assert {name.strip(".").partition("(")[0] for name in named("Fixture")} == attributes


def test_outcomes() -> None:
    assert named("Outcomes") == [kind.value for kind in Kind]


def test_what_is_held_without_a_sandbox() -> None:
    """The table of the reference is the one that the code goes by."""
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert "\n\n" + "\n".join(holds.markdown()) + "\n\n" in text


def test_user_properties() -> None:
    counters = [f"ns_{name}" for name in perf_counters.EVENTS]
    usual = ["ns_outcome", "ns_wall", "ns_cpu", "ns_peak_memory", "ns_artifacts", "ns_kept"]
    assert named("User properties") == usual + counters


def test_options_of_run() -> None:
    """The reference names all options of `nsisolate run`: those of keys, and three more."""
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    (sentence,) = re.findall(r"`nsisolate run --help` lists the options: (.*)", text)
    of_keys = {f"--{key.dashed}" for key in keys.KEYS.values() if key.run is not None}
    assert set(re.findall(r"--[\w-]+", sentence)) == {*of_keys, "--env", "--json", "--quiet"}


def test_commands() -> None:
    parser = main._parsers()[0]
    (action,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    commands = {name.split()[1] for name in named("Commands") if name.startswith("nsisolate ")}
    assert commands == set(action.choices)


@pytest.mark.parametrize(
    "workflow",
    [
        *(f"examples/hermetic/{name}" for name in ("github-actions.yml", "gitlab-ci.yml")),
        "examples/hermetic/Dockerfile",
        ".github/workflows/ci.yml",
    ],
)
def test_workflows_ask_for_what_the_table_of_hosts_says(workflow: str) -> None:
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    table = text[text.index("## Hosts") :]
    option = r"--security-opt \w+=\w+"
    rows = [line for line in table.splitlines() if line.startswith(("| Docker |", "| Podman |"))]
    docker, podman = (re.findall(option, row) for row in rows)
    assert len(docker) == 3
    ours, _, other = (ROOT / workflow).read_text("utf-8").partition("podman run")
    assert re.findall(option, ours) == docker
    # What the table has for the two; the third is for some hosts only.
    assert re.findall(option, other) in ([], podman[:2])


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml", "Dockerfile"])
def test_examples_of_workflows_run_the_doctor(name: str) -> None:
    workflow = (ROOT / "examples" / "hermetic" / name).read_text("utf-8")
    assert "pytest --ns-doctor" in workflow or "docker build" in workflow


def test_every_example_is_run_and_linked() -> None:
    examples = {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()}
    readme = (ROOT / "README.md").read_text("utf-8")
    tests = (ROOT / "tests/behaviour/documents/test_examples.py").read_text("utf-8")
    assert {name for name in examples if f"(examples/{name})" not in readme} == set()
    assert {name for name in examples if f'"{name}"' not in tests} == set()
