"""Private directories in layers: a test sees its snapshot's files, and keeps its own changes.

The sandbox of a snapshot has a tmpfs for each private directory, like any other. The
sandboxes inside it mount an overlay on each: below, what the snapshot wrote; above, a
tmpfs of their own. A tmpfs with something mounted in it can't be a lower layer, since
those mounts are locked in the namespace of the test (overlayfs gives EINVAL). So the
layers are made on a stage out of sight and bound from there. The stage is where PID 1
of the sandbox stands: the kernel keeps that place right when the mount namespace is
copied, so the PID 1 of a test stands on the copy, and reaches the layers by relative
paths. ("..", though, would lead to what covers the stage.) On a stage stand, for the
private directory number N, its layers "N.0", "N.1", ..., the topmost first; and "u",
where the stage of the next level is mounted.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from pytest_nsisolate.core.linux.syscalls import MS_BIND, MS_NODEV, MS_NOSUID, StageError, mount

from .steps import Step, make_directories

_FLAGS = MS_NOSUID | MS_NODEV


class LayerStage(NamedTuple):
    """Where the *number* layers of one sandbox are put together.

    Attributes:
        top: a private directory, which covers the stage of level 0 in the end.
        level: 0 for a sandbox of the keeper's, 1 for one inside it, and so on.
        size: of the tmpfs for all changes of one level above 0, in bytes.
    """

    top: str
    level: int
    number: int
    size: int

    def describe(self) -> str:
        return f"make ready for {self.number} layers of level {self.level}"

    def steps(self) -> list[Step]:
        numbers = range(self.number)
        if self.level == 0:
            top = os.fsencode(self.top)
            places = [b"%s/%d.0" % (top, number) for number in numbers] + [top + b"/u"]
            return [
                Step(mount, (b"tmpfs", top, b"tmpfs", _FLAGS, b"size=64k,mode=755")),
                Step(make_directories, (tuple(places), 0o755)),
                Step(_stand, (top,)),
            ]
        places = [b"u/work%d" % number for number in numbers] + [b"u/u"]
        options = f"size={self.size},mode=755".encode()
        return [
            Step(mount, (b"tmpfs", b"u", b"tmpfs", _FLAGS, options)),
            Step(make_directories, (tuple(places), 0o755)),
        ]


class Layer(NamedTuple):
    """A private directory, as the layer *number* of its level. *size* in bytes."""

    path: str
    level: int
    number: int
    size: int
    mode: int

    def describe(self) -> str:
        if self.level == 0:
            return f"mount tmpfs on {self.path} ({self.size >> 10} KiB, mode {self.mode:o})"
        return f"mount an overlay on {self.path}, over what the snapshot has there"

    def steps(self) -> list[Step]:
        path, number = os.fsencode(self.path), b"%d." % self.number
        if self.level == 0:
            options, place = f"size={self.size},mode={self.mode:o}".encode(), number + b"0"
            return [
                Step(mount, (b"tmpfs", place, b"tmpfs", _FLAGS, options)),
                Step(mount, (place, path, b"", MS_BIND, b"", "bind")),
            ]
        lower = b":".join(number + b"%d" % one for one in range(self.level))
        upper = b"u/" + number + b"0"
        data = b"lowerdir=%s,upperdir=%s,workdir=u/work%d,userxattr" % (lower, upper, self.number)
        return [
            Step(_make_layer, (upper, self.mode)),
            Step(mount, (b"overlay", path, b"overlay", _FLAGS, data, "mount overlay")),
        ]


class Descend(NamedTuple):
    """Stand on the stage of this sandbox, with all layers, to build the next level from there."""

    level: int
    number: int

    def describe(self) -> str:
        return "make ready for sandboxes inside"

    def steps(self) -> list[Step]:
        steps = []
        for number in range(self.number):
            for layer in range(self.level):
                old, new = b"%d.%d" % (number, layer), b"u/%d.%d" % (number, layer + 1)
                steps.append(Step(make_directories, ((new,), 0o755)))
                steps.append(Step(mount, (old, new, b"", MS_BIND, b"", "bind")))
        return [*steps, Step(_stand, (b"u",))]


def _stand(path: bytes) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise StageError(
            "stand on the stage", error.errno or errno.EIO, os.fsdecode(path)
        ) from None


def _make_layer(path: bytes, mode: int) -> None:
    try:
        os.mkdir(path)
        os.chmod(path, mode)  # whatever the umask is
    except OSError as error:
        raise StageError("make a layer", error.errno or errno.EIO, os.fsdecode(path)) from None
