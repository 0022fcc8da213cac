"""Copy what ``sandbox.export`` names, in the test process.

What is exported is copied at once, as it is at that moment, to a directory of the
sandbox's own; the runner has it brought out when the test ends, however it ends.
"""

from __future__ import annotations

import errno
import os

from pytest_nsisolate.core.copying import Copier, Entry


def stage(path: str | os.PathLike[str], staging: str) -> None:
    """Copy the file or directory *path* to *staging*, under its own name or a numbered one.

    Raises:
        OSError: it is not there, is neither file nor directory, or does not fit.
    """
    source = os.path.realpath(os.fspath(path))
    name = os.path.basename(os.path.normpath(os.fspath(path))) or "root"
    os.stat(source)  # says of a missing one that it is missing
    if not os.path.isfile(source) and not os.path.isdir(source):
        raise OSError(errno.EINVAL, "neither a file nor a directory", os.fspath(path))
    if os.path.isdir(source) and staging.startswith(source.rstrip("/") + "/"):
        raise OSError(errno.EINVAL, "the directory holds what was exported", os.fspath(path))
    os.makedirs(staging, 0o700, exist_ok=True)
    target = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        above = os.open(os.path.dirname(source), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copier = Copier()
            copier.copy(Entry(above, os.path.basename(source)), Entry(target, _free(name, staging)))
        finally:
            os.close(above)
    finally:
        os.close(target)
    if copier.left_out:
        more = f" and {copier.more} more" if copier.more else ""
        raise OSError(errno.EIO, f"not exported: {', '.join(copier.left_out)}{more}", name)


def _free(name: str, directory: str) -> str:
    stem, dot, end = name.partition(".")
    number = 2
    new = name
    while os.path.lexists(os.path.join(directory, new)):
        new = f"{stem}-{number}{dot}{end}"
        number += 1
    return new
