"""Carry the data of coverage.py from a test process to the runner.

Each process writes its own file. If coverage itself would let all processes write to one
(``coverage run`` without ``-p``), the runner combines the files at the end of the session.
If a test can't write beside the checkout, coverage writes to the private directory of its
process, which sends the file as it is. The runner puts it where it would have been.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import sys
from typing import Any


def current() -> Any:
    """Find the active `coverage.Coverage` of this process, None if there is none."""
    coverage: Any = sys.modules.get("coverage")
    return coverage.Coverage.current() if hasattr(coverage, "Coverage") else None


#: Files to combine; a process has one active coverage, and so one list.
_apart: list[str] = []


def separate(directory: str | None) -> bool:
    """Make coverage write a test process's own file; call it there before the test.

    Args:
        directory: of the file; None for that of the runner's file.

    Returns:
        Whether the runner has to combine the file: coverage would not have written it.
    """
    active = current()
    data: Any = getattr(active, "_data", None)
    # Private names: coverage has no public way to move a file that it has not begun
    # yet. If they are gone, `save` takes the file that coverage could write.
    if not all(hasattr(data, name) for name in ("_basename", "_suffix", "_choose_filename")):
        return False
    apart = not data._suffix
    if apart:
        data._suffix = True  # as with `coverage run -p`
    if directory is not None:
        data._basename = os.path.join(directory, os.path.basename(data._basename))
    if apart or directory is not None:
        data._choose_filename()
    return apart


def save(*, sealed: bool, apart: bool) -> list[str | None] | None:
    """Save the data at the end of a test process; return what `put` takes in the runner.

    Args:
        sealed: whether the file is gone with the sandbox: send its bytes too.
        apart: what `separate` returned.

    Returns:
        The name of the file, and its bytes as text; None if the runner has nothing to do.
    """
    active = current()
    if active is None:
        return None
    active.stop()
    active.save()
    if not (sealed or apart):
        return None
    data = active.get_data()
    if not sealed:
        return [os.path.basename(data.data_filename()), None]
    data.close()
    path = data.data_filename()
    try:
        with open(path, "rb") as stream:
            text = binascii.b2a_base64(stream.read(), newline=False).decode("ascii")
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.unlink(path)
    return [os.path.basename(path), text]


def put(payload: list[str | None]) -> None:
    """Write the file of a test process beside the runner's own, or note where it is.

    Raises:
        ValueError: the name is none that coverage gives a file.
    """
    name, text = payload
    active = current()
    if active is None or name is None:
        return
    own = os.path.abspath(active.get_option("run:data_file"))
    base = os.path.basename(own)
    if os.path.basename(name) != name or not (name == base or name.startswith(base + ".")):
        raise ValueError(f"coverage data named {name!r}")
    path = os.path.join(os.path.dirname(own), name)
    if text is not None:
        with open(path, "wb") as stream:
            stream.write(binascii.a2b_base64(text))
    data = getattr(active, "_data", None)
    if data is not None and os.path.abspath(data.data_filename()) == own:
        _apart.append(path)


def combine() -> None:
    """Combine the separate files with the runner's data, at the end of the session."""
    active, paths = current(), [path for path in _apart if os.path.exists(path)]
    _apart.clear()
    if active is not None and paths:
        active.combine(data_paths=paths)
