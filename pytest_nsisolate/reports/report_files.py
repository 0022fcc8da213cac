"""Check the report files of a session at its start, and write each in one go at its end.

Guarantees: a file is there in full or not at all (it is written beside its place and
then renamed); nothing is read into memory as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TextIO

SCHEMA, VERSION = "nsisolate-report", 1
_PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
_MARK = "@DATA@"

#: Writes a header and tests to a stream.
Writer = Callable[[TextIO, dict[str, Any], Iterable[dict[str, Any]]], None]


class Unwritable(Exception):
    """A file that was asked for can't be written; the text is for the user."""


class Target:
    """One file that an option asks for."""

    def __init__(self, option: str, path: str) -> None:
        self.option = option
        self.path = path
        # Tests may change the directory.
        self._real = os.path.realpath(path)
        name = f".ns-{os.getpid()}-{os.urandom(4).hex()}.tmp"
        self._beside = os.path.join(os.path.dirname(self._real), name)

    @property
    def suffix(self) -> str:
        """Of its name, in lower case."""
        return os.path.splitext(self.path)[1].lower()

    def check(self) -> str:
        """Create its directory, and see that files can be made in it; give its real path.

        Raises:
            Unwritable: they can't.
        """
        folder = os.path.dirname(self._real)
        try:
            if os.path.isdir(self._real):
                raise IsADirectoryError(21, "it is a directory")
            os.makedirs(folder, exist_ok=True)
            os.close(self._create())
            os.unlink(self._beside)
        except OSError as error:
            raise Unwritable(
                f"option {self.option}: {self.path!r} can't be written: {error.strerror}; "
                f"allowed: a file in a directory that you may write to"
            ) from None
        return self._real

    def _create(self) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)
        return os.open(self._beside, flags, 0o666)

    def write(self, write: Callable[[TextIO], None]) -> None:
        """Let *write* write the file, and put it in its place.

        Raises:
            OSError: what went wrong; what was there before still is.
        """
        try:
            # ASCII: whatever is not, JSON escapes.
            with open(self._create(), "w", encoding="utf-8", newline="\n") as stream:
                write(stream)
            os.replace(self._beside, self._real)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self._beside)
            raise


def check(targets: Iterable[Target]) -> None:
    """Check that each file can be written, and that no two are the same.

    Raises:
        Unwritable: names the one that can't.
    """
    seen: dict[str, Target] = {}
    for target in targets:
        first = seen.setdefault(target.check(), target)
        if first is not target:
            raise Unwritable(
                f"option {target.option}: {target.path!r} is the file of {first.option}, too; "
                f"allowed: a file of its own"
            )


def report(stream: TextIO, header: dict[str, Any], tests: Iterable[dict[str, Any]]) -> None:
    """Write a report as JSON, one test a line."""
    _report(stream.write, header, tests)


def _report(
    write: Callable[[str], object], header: dict[str, Any], tests: Iterable[dict[str, Any]]
) -> None:
    write(f'{{"schema": {json.dumps(SCHEMA)}, "version": {VERSION},\n"session": ')
    write(json.dumps(header))
    write(',\n"tests": [')
    for number, test in enumerate(tests):
        write((",\n" if number else "\n") + json.dumps(test))
    write("\n]}\n")


def page(stream: TextIO, header: dict[str, Any], tests: Iterable[dict[str, Any]]) -> None:
    """Write a report as one page that holds all it needs."""
    with open(_PAGE, encoding="utf-8") as template:
        before, _, after = template.read().partition(_MARK)
    stream.write(before)
    # In a JSON text "<" stands in strings only; a name like </script> must not end it.
    _report(lambda text: stream.write(text.replace("<", "\\u003c")), header, tests)
    stream.write(after)
