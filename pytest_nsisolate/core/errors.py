"""The error of everything that builds a sandbox: stage, errno and path, without prose."""

from __future__ import annotations

import errno
import os


class StageError(Exception):
    """A step of building or entering a sandbox failed.

    Attributes:
        stage: what was being done, in words that `explain` knows.
        errno: the error number the kernel gave.
        path: the file, mount point or namespace concerned, or "".
    """

    def __init__(self, stage: str, errno_: int, path: str = "") -> None:
        super().__init__(stage, errno_, path)
        self.stage = stage
        self.errno = errno_
        self.path = path

    @classmethod
    def of(cls, stage: str, error: OSError, path: str = "") -> StageError:
        """Wrap *error*, raised at *stage*; the path is the error's own if none is given."""
        own = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        return cls(stage, error.errno or errno.EIO, path or own)

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno, str(self.errno))
        where = f" {self.path}" if self.path else ""
        return f"{self.stage}{where}: {name} ({os.strerror(self.errno)})"
