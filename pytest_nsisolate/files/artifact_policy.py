"""Decide which files of which tests are brought out of their sandboxes, and to where.

``tmp_path`` of a failed test, or of every test where the user has asked for that, goes to
where pytest would have left it; exported files, and those that match patterns, go to a
directory for artifacts, each test's to one of its own that is named by the test.

Usable without pytest. The copying itself is done by PID 1 of the sandbox (`collect`).
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_nsisolate.core.artifacts import STAGING, Collected, CollectRequest
from pytest_nsisolate.spec.profiles import is_noise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: How long it may take, in seconds; the session waits for it.
LIMIT = 60.0
#: How long the name of a directory may be, in bytes; file systems take 255.
_MAX_NAME = 180
#: How many characters of a test's name pytest takes for its ``tmp_path``.
_TMP_NAME = 30


class Collector(Protocol):
    """A `Sandbox`, whose PID 1 copies files out."""

    def bring_out(
        self, request: CollectRequest, fds: list[int], limit: float
    ) -> Collected | None: ...


class Brought(NamedTuple):
    """What was brought out.

    Attributes:
        artifacts: the directory on the host, "" if there is none.
        lines: what a person has to know of it.
        written: files that the test wrote in overlays, which are gone with the sandbox.
    """

    artifacts: str = ""
    lines: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


class Retention(NamedTuple):
    """See the module.

    Attributes:
        basetemp: pytest's directory for ``tmp_path``, None if it has none.
        policy: whose ``tmp_path`` stays: "failed", "all" or "none".
        patterns: of files that are brought out of every test.
        folder: where artifacts go.
        directory: where tests start; what patterns are relative to.
        nodeids: the tests' names, by index of the item.
        numbers: what `numbers` gave.
        overlays: the paths of the overlays of a test's sandbox, by number. If the test fails,
            its report names the files that it wrote there.
    """

    basetemp: str | None
    policy: str
    patterns: tuple[str, ...]
    folder: str
    directory: str
    nodeids: Mapping[int, str]
    numbers: Mapping[int, tuple[str, int]]
    overlays: Mapping[int, Mapping[int, str]]

    def staging(self, item: int) -> str:
        """Return where a test puts what it exports."""
        top = self.basetemp or "/tmp"  # noqa: S108 -- private
        return os.path.join(top, STAGING, f"{item}")

    def bring_out(
        self,
        sandbox: Collector,
        item: int,
        *,
        failed: bool,
        exported: bool,
        since: int,
        before: Sequence[int] = (),
        goes_on: bool = False,
    ) -> Brought:
        """Bring out the artifacts of a test at its end.

        Args:
            failed: it, or one before it in the same sandbox.
            since: when the first test began there: no test wrote the files that are older.
            before: the tests that ran there before it.
            goes_on: other tests follow there; only what this one exported comes out now.
        """
        temporary = self.policy == "all" or (failed and self.policy == "failed")
        keeps_tmp = temporary and self.basetemp is not None and not goes_on
        patterns = () if goes_on else self.patterns
        keeps_more = bool(patterns) or exported
        overlays = self.overlays.get(item, {}) if failed and not goes_on else {}
        if not (keeps_tmp or keeps_more or overlays):
            return Brought()
        with contextlib.ExitStack() as stack:
            fds = []
            try:
                if keeps_tmp:
                    assert self.basetemp is not None
                    fds.append(_directory(self.basetemp, stack))
                if keeps_more:
                    os.makedirs(self.folder, exist_ok=True)
                    fds.append(_directory(self.folder, stack))
            except OSError as error:
                return Brought(lines=(f"nothing: {error.filename}: {error.strerror}",))
            names = [self.numbers[one] for one in (*before, item) if one in self.numbers]
            told = sandbox.bring_out(
                CollectRequest(
                    temporary=(self.basetemp or "") if keeps_tmp else "",
                    # pytest 8 takes the number from it, see `pytest_private.number_tmp_path`
                    skip=tuple(f"{stem}{number - 1}" for stem, number in names),
                    name=directory_name(self.nodeids[item]) if keeps_more else "",
                    staging=self.staging(item) if exported else "",
                    patterns=tuple(os.path.join(self.directory, one) for one in patterns),
                    directory=self.directory,
                    since=since,
                    overlays=tuple(overlays.items()),
                ),
                fds,
                LIMIT,
            )
        if told is None:
            return Brought(lines=("nothing: PID 1 of the sandbox did not answer",))
        return self._brought(told)

    def _brought(self, told: Collected) -> Brought:
        lines = [
            f"{os.path.join(self.basetemp or '', old)} is in {new} there: the name was taken"
            for old, new in told.renamed
        ]
        place = os.path.join(self.folder, told.artifacts) if told.artifacts else ""
        if place:
            lines.append(f"artifacts are in {place}")
        lines += [f"left out: {one}" for one in told.left_out]
        if told.more:
            lines.append(f"left out: {told.more} more")
        written = tuple(
            path for path in told.written if not is_noise(path.removesuffix(" (removed)"))
        )
        return Brought(place, tuple(lines), written)


def _directory(path: str, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def directory_name(nodeid: str) -> str:
    """Return the name of a test's directory for artifacts: its node id, as far as possible.

    What can't be kept is replaced, and a checksum of the whole then tells such names apart.
    """
    plain = nodeid.replace("::", ".").replace("/", "-").lstrip(".")
    name = re.sub(r"[^\w.\-\[\]=,+@]", "_", plain)
    # A file system counts bytes; cut in no character.
    data = os.fsencode(name)
    cut = data[:_MAX_NAME].decode("utf-8", "ignore") if len(data) > _MAX_NAME else name
    if cut != plain or not cut:
        cut = f"{cut}-{zlib.crc32(nodeid.encode('utf-8', 'surrogateescape')):08x}"
    return cut


def numbers(names: Iterable[tuple[int, str]]) -> dict[int, tuple[str, int]]:
    """Return the number that each test's ``tmp_path`` has to get, if not 0, by index of the item.

    Each test sees an empty directory for its ``tmp_path``, in which pytest would begin at 0.
    Where two tests have one name (it is cut after 30 characters) the second has to begin at
    another number, so that the path that it sees is the path where it is found later.

    Args:
        names: of all tests that have a ``tmp_path``, in order.
    """
    taken: set[str] = set()
    found = {}
    for item, name in names:
        stem = re.sub(r"[\W]", "_", name)[:_TMP_NAME]
        number = 0
        while f"{stem}{number}".lower() in taken:
            number += 1
        taken.add(f"{stem}{number}".lower())
        if number:
            found[item] = (stem, number)
    return found
