"""Device nodes that may be opened in a cgroup of v2: a small BPF program, as systemd does it.

The program is asked at each open and mknod of a node, and allows those it was made
for. Loading needs CAP_BPF (or CAP_SYS_ADMIN) in the first user namespace; raises
OSError where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.syscalls import bpf

if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/bpf.h
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2
_BLOCK, _CHARACTER = 1, 2
_LOAD, _AND, _JUMP_NOT_EQUAL, _MOVE, _EXIT = 0x61, 0x54, 0x55, 0xB7, 0x95
_ATTR_SIZE = 128


class Node(NamedTuple):
    """A device: ``c`` or ``b``, and its numbers. Its text is that of v1's devices.allow."""

    kind: str
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.kind} {self.major}:{self.minor}"


def node(path: str) -> Node:
    """The device at *path*; ENODEV if it is none."""
    found = os.stat(path)
    for kind, fits in (("c", stat.S_ISCHR), ("b", stat.S_ISBLK)):
        if fits(found.st_mode):
            return Node(kind, os.major(found.st_rdev), os.minor(found.st_rdev))
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)


def _instruction(code: int, target: int, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)


def program(nodes: Iterable[Node]) -> bytes:
    """The instructions: r0 = 1 if the node asked for is one of *nodes*, else 0.

    In the context (r1): kind of node and of access, major, minor, 32 bits each.
    """
    code = [
        _instruction(_LOAD, 2, 1, 0),
        _instruction(_AND, 2, value=0xFFFF),
        _instruction(_LOAD, 3, 1, 4),
        _instruction(_LOAD, 4, 1, 8),
    ]
    for one in nodes:
        kind = _CHARACTER if one.kind == "c" else _BLOCK
        code += [
            _instruction(_JUMP_NOT_EQUAL, 2, offset=4, value=kind),
            _instruction(_JUMP_NOT_EQUAL, 3, offset=3, value=one.major),
            _instruction(_JUMP_NOT_EQUAL, 4, offset=2, value=one.minor),
            _instruction(_MOVE, 0, value=1),
            _instruction(_EXIT, 0),
        ]
    code += [_instruction(_MOVE, 0, value=0), _instruction(_EXIT, 0)]
    return b"".join(code)


def attach(directory: str, nodes: Iterable[Node]) -> int:
    """Load the program for *nodes* and attach it to the cgroup; gives its descriptor."""
    text = program(nodes)
    code, terms = ctypes.create_string_buffer(text), ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQ",
        _TYPE_CGROUP_DEVICE,
        len(text) // 8,
        ctypes.addressof(code),
        ctypes.addressof(terms),
    )
    fd = bpf(_PROG_LOAD, load.ljust(_ATTR_SIZE, b"\0"))
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            wish = struct.pack("=IIII", place, fd, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI)
            bpf(_PROG_ATTACH, wish.ljust(_ATTR_SIZE, b"\0"))
        finally:
            os.close(place)
    except BaseException:
        os.close(fd)
        raise
    return fd
