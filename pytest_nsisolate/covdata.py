"""Coverage's data of a test that can't write beside the checkout: out by the report stream.

The test process has coverage write to its private directory, and sends the file as it
is; the runner puts it where it would have been. Nothing in it is read here.
"""

import binascii
import contextlib
import os
import sys
from typing import Any


def current() -> Any:
    """The active `coverage.Coverage` of this process, None if there is none."""
    coverage: Any = sys.modules.get("coverage")
    return coverage.Coverage.current() if hasattr(coverage, "Coverage") else None


def redirect(directory: str) -> None:
    """In a test process, before its test: have coverage write into *directory*."""
    active = current()
    data = getattr(active, "_data", None)
    # Private names: coverage has no other way to change the place of a file that it has
    # not begun yet. Where they are gone, `take` finds what could be written.
    if data is not None and hasattr(data, "_basename") and hasattr(data, "_choose_filename"):
        data._basename = os.path.join(directory, os.path.basename(data._basename))
        data._choose_filename()


def take(saved: "Any") -> "list[str] | None":
    """In a test process: the name of the file that coverage has saved, and its bytes as text."""
    data = saved.get_data()
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


def put(payload: "list[str]") -> None:
    """In the runner: write the file beside the data file of this process.

    Raises:
        ValueError: it is not named as coverage names its files.
    """
    name, text = payload
    active = current()
    if active is None:
        return
    own = os.path.abspath(active.get_option("run:data_file"))
    base = os.path.basename(own)
    if os.path.basename(name) != name or not (name == base or name.startswith(base + ".")):
        raise ValueError(f"coverage data named {name!r}")
    with open(os.path.join(os.path.dirname(own), name), "wb") as stream:
        stream.write(binascii.a2b_base64(text))
