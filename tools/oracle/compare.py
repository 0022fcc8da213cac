"""Run the tests of pytest itself, plainly and with each of their runs isolated, and compare.

``differences.toml`` lists each test whose outcome differs, with the reason. This fails for a
difference that is not listed, and for one that is listed and is none (any more). The tests are
those of the sdist of the pytest that is installed here; its hash is pinned in the list.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tarfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
ISOLATED = "-p nsisolate --ns-isolate"
LONGEST = 4 * 3600  # seconds; generous, it only has to be finite


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one test: its phases that tell something, and the text of failures."""

    phases: tuple[str, ...]
    text: str


def known() -> dict[str, Any]:
    """The list of differences."""
    tomllib = importlib.import_module("tomllib")  # not in Python 3.10, which types are checked for
    found: dict[str, Any] = tomllib.loads((HERE / "differences.toml").read_text("utf-8"))
    return found


def sources(workdir: Path, version: str, sha256: str) -> Path:
    """The unpacked sdist of this pytest, fetched unless it is there.

    Raises:
        SystemExit: it is not the one that the list was made with.
    """
    archive = workdir / f"pytest-{version}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        command += ["--no-binary", "pytest", "--dest", str(workdir), f"pytest=={version}"]
        subprocess.run(command, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        sys.exit(f"{archive} has the sha256 {found}, and differences.toml wants {sha256}")
    folder = workdir / f"pytest-{version}"
    if not folder.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(workdir, filter="data")
    return folder


def outcomes(folder: Path, out: Path, files: list[str], addopts: str) -> dict[str, Outcome]:
    """Run these files of pytest's tests, with *addopts* for each of the runs that they make."""
    out.unlink(missing_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "NS_ORACLE_ADDOPTS": addopts,
        "NS_ORACLE_OUT": str(out),
        "PYTHONPATH": str(HERE),
    }
    command = [sys.executable, "-m", "pytest", "-p", "recorder", "-p", "no:cacheprovider", "-q"]
    with out.with_suffix(".txt").open("wb") as stream:
        subprocess.run(
            [*command, "-n", "2", "--tb=short", *files],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=LONGEST,
            check=False,
        )
    if not out.exists():
        sys.exit(f"no test of pytest was run; see {out.with_suffix('.txt')}")
    found: dict[str, Outcome] = {}
    for line in out.read_text("utf-8").splitlines():
        nodeid, phase, text = json.loads(line)
        before = found.get(nodeid, Outcome(phases=(), text=""))
        found[nodeid] = Outcome(phases=(*before.phases, phase), text=before.text + text)
    return found


def differing(plain: Mapping[str, Outcome], isolated: Mapping[str, Outcome]) -> set[str]:
    """The tests whose phases ended otherwise, or that only one of the two runs has."""
    nobody = Outcome(phases=(), text="")
    return {
        nodeid
        for nodeid in {*plain, *isolated}
        if plain.get(nodeid, nobody).phases != isolated.get(nodeid, nobody).phases
    }


def chosen(files: list[str], words: list[str]) -> list[str]:
    """The files to run: all that are listed, or those whose names contain one of the words."""
    return [name for name in files if not words or any(word in name for word in words)]


def main() -> int:
    """Compare; print each difference that is not as listed, and the count of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="for the sdist and outputs")
    parser.add_argument("words", nargs="*", help="parts of the names of files to run; all if none")
    arguments = parser.parse_args()
    listed = known()
    if pytest.__version__ != listed["pytest"]:
        sys.exit(f"differences.toml is about pytest {listed['pytest']}, not {pytest.__version__}")
    workdir = arguments.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    folder = sources(workdir, listed["pytest"], listed["sha256"])
    files = chosen(listed["files"], arguments.words)
    if not files:
        sys.exit(f"no file of {', '.join(listed['files'])} is named so")
    plain = outcomes(folder, workdir / "plain.jsonl", files, "")
    isolated = outcomes(folder, workdir / "isolated.jsonl", files, ISOLATED)
    found = differing(plain, isolated)
    expected = {
        nodeid
        for difference in listed["difference"]
        for nodeid in difference["tests"]
        if any(nodeid.startswith(name) for name in files)
    }
    for nodeid in sorted(found - expected):
        print(f"NEW {nodeid}")
        for title, run in (("plain", plain), ("isolated", isolated)):
            outcome = run.get(nodeid, Outcome(phases=("not run",), text=""))
            print(f"  {title}: {', '.join(outcome.phases)}")
            print(textwrap.indent(outcome.text, "    "))
    for nodeid in sorted(expected - found):
        print(f"NO DIFFERENCE (any more) {nodeid}")
    print(f"{len(isolated)} tests, {len(found)} differ, {len(found & expected)} of them as listed")
    return 1 if found != expected else 0


if __name__ == "__main__":
    sys.exit(main())
