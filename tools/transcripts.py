"""The transcripts in the docs: what a command in a document really prints.

A document marks them with comments that no reader sees::

    <!-- file: test_it.py -->      the fenced block below is a file
    <!-- run -->                   the fenced block below is a command, and what it prints
    <!-- run: needs limits -->     the same, where the host has these capabilities

Each command runs in a fresh directory with the files of its section, that is, of those since the
last heading. ``python tools/transcripts.py`` writes what they print into the documents (with
tests/ in PYTHONPATH). A test holds that it is still so, but for times, pids, addresses, versions.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.hosts import DEADLINE, inherited

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
HOME = "/home/me/demo"
"""What stands in the documents for the directory of a run."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One command of a document, and what the document says that it prints."""

    document: Path
    section: str
    command: str
    files: tuple[tuple[str, str], ...]
    needs: tuple[str, ...]
    printed: str
    lines: tuple[int, int]
    """The lines of what is printed: the first, and the one after the last."""

    @property
    def name(self) -> str:
        """Where it stands, for people."""
        return f"{self.document.name}: {self.section}: {self.command}"

    def run(self) -> str:
        """What the command prints now, fit to be shown."""
        with tempfile.TemporaryDirectory(prefix="nsisolate-nobody-docs-") as folder:
            for name, text in self.files:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
            done = subprocess.run(
                ["sh", "-c", self.command],
                cwd=folder,
                env={
                    **inherited(),
                    "COLUMNS": "80",
                    "HOME": folder,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "PYTHONUNBUFFERED": "1",  # what comes first stands first, as on a terminal
                    "PY_COLORS": "0",
                    "PYTEST_ADDOPTS": "-p nsisolate -p no:cacheprovider",
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=2 * DEADLINE,
                check=False,
            )
        library = sysconfig.get_path("stdlib")
        shown = done.stdout.replace(folder, HOME)
        shown = shown.replace(library, f"/usr/lib/{Path(library).name}")
        shown = shown.replace(str(Path(sys.executable).parent), "/usr/bin")
        return "".join(f"{line.rstrip()}\n" for line in shown.rstrip().splitlines())


def transcripts(document: Path) -> Iterator[Transcript]:
    """All that a document has."""
    section = document.stem
    files: list[tuple[str, str]] = []
    told: re.Match[str] | None = None
    lines = document.read_text("utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("#"):
            section, files = line.lstrip("# "), []
        elif found := re.fullmatch(r"<!-- (?:file: (\S+)|run(?:: needs ([\w, ]+))?) -->", line):
            told = found
        elif line.startswith("```"):
            end = lines.index("```", number)
            text = "".join(f"{one}\n" for one in lines[number:end])
            if told is not None and told[1]:
                files.append((told[1], text))
            elif told is not None:
                first, printed = text.split("\n", 1)
                assert first.startswith("$ "), f"{document}:{number + 1}: no command"
                yield Transcript(
                    document=document,
                    section=section,
                    command=first.removeprefix("$ "),
                    files=tuple(files),
                    needs=tuple((told[2] or "").replace(",", " ").split()),
                    printed=printed,
                    lines=(number + 1, end),
                )
            told, number = None, end + 1
        else:
            assert told is None or not line, f"{document}:{number}: a comment without its block"


VARIABLE = (
    # What a test is held to is no figure, and stays: "after 5 s", "limit 64 MiB".
    (r"(?<!after )\b\d+(?:\.\d+)? ?m?s\b(?: \(\d+:\d\d:\d\d\))?", "TIME"),
    (r"(?<!limit )\b\d+(?:\.\d+)? (?:[KMG]i)?B\b", "SIZE"),
    (r"source +cgroup \w+", "source cgroup"),
    (r"0x[0-9a-f]+", "0xADDRESS"),
    (r"pid \d+", "pid N"),
    (r"pytest-of-\w+/pytest-\d+", "pytest-of-USER/pytest-N"),
    (r"python3\.\d+", "python3.N"),
    (r"/usr/bin/python(?:3(?:\.N)?)? \S*/bin/pytest\b", "/usr/bin/python /usr/bin/pytest"),
    (r"(Python|pytest-|pluggy-|nsisolate-) ?\d+(?:\.\w+)+", r"\1N"),
    (r"(/usr/lib/python\S+\"?,? ?(?:line |:))\d+", r"\1N"),
    (r" \[[^]]*\] \(most recent call first\)", " (most recent call first)"),
    (r"([=_-])\1+", r"\1"),
    (r"[ \t]+", " "),
)
"""What differs from run to run, from host to host, and from one Python to another."""


def normalised(text: str) -> list[str]:
    """Lines of a transcript without what differs from run to run."""
    for pattern, instead in VARIABLE:
        text = re.sub(pattern, instead, text)
    return text.strip().splitlines()


def difference(transcript: Transcript, printed: str) -> str:
    """How what is printed now differs from what the document says; empty if it does not."""
    before, now = normalised(transcript.printed), normalised(printed)
    return "\n".join(difflib.unified_diff(before, now, "document", "now", lineterm=""))


def main() -> None:
    """Write what all commands print into the documents; or those whose name has a word given."""
    for document in DOCUMENTS:
        found = list(transcripts(document))
        lines = document.read_text("utf-8").splitlines()
        for one in reversed(found):  # so that line numbers stay right
            if all(word in one.name for word in sys.argv[1:]):
                printed = one.run()
                if difference(one, printed):
                    sys.stdout.write(f"written: {one.name}\n")
                    lines[slice(*one.lines)] = printed.splitlines()
        document.write_text("".join(f"{line}\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
