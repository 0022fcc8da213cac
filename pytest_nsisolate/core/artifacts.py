"""The runner's request to copy files out of a sandbox, and the answer of its PID 1."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The directory, in that for ``tmp_path``, where `sandbox.export` puts files.
STAGING = ".nsisolate-export"


class CollectRequest(NamedTuple):
    """What PID 1 copies at the end of a test.

    Attributes:
        temporary: the test's directory for ``tmp_path``, "" to leave it. Its content goes
            into the first of the directories whose descriptors come with the request.
        skip: names in it that PID 1 leaves if they are empty.
        name: of the directory for all other files, made in the last of those directories.
        staging: where exported files are, "" if there are none.
        patterns: of other files, absolute; only those that the test made or changed count.
        directory: what names of such files are relative to.
        since: when the test began, in nanoseconds since the epoch.
        overlays: numbers and paths of the overlays to search for written files.
    """

    temporary: str = ""
    skip: tuple[str, ...] = ()
    name: str = ""
    staging: str = ""
    patterns: tuple[str, ...] = ()
    directory: str = ""
    since: int = 0
    overlays: tuple[tuple[int, str], ...] = ()


class Collected(NamedTuple):
    """What PID 1 copied.

    Attributes:
        renamed: directories of ``tmp_path`` that got another name because theirs was taken.
        artifacts: the name of the directory with the other files, "" if there were none.
        left_out: the first names that were not copied, each with the reason.
        more: how many more were not copied.
        written: the first paths in overlays that were written or removed.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    artifacts: str = ""
    left_out: tuple[str, ...] = ()
    more: int = 0
    written: tuple[str, ...] = ()

    @classmethod
    def from_wire(cls, data: Any) -> Collected:
        """Read the list that a tuple becomes in JSON."""
        renamed, artifacts, left_out, more, written = data
        pairs = tuple((str(old), str(new)) for old, new in renamed)
        return cls(pairs, str(artifacts), tuple(map(str, left_out)), int(more), tuple(written))
