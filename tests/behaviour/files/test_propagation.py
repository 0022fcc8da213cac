"""Mounts: none made inside is seen outside; those of the host flow in where they are asked to."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.needs("sandbox", "root")]

OWN_MOUNTS = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
libc.unshare(0x20000)
libc.mount(None, b"/", None, 0x40000 | 0x4000, None)
top = sys.argv[1]
for name, flag in (("shared", 1 << 20), ("private", 1 << 18), ("unbindable", 1 << 17)):
    path = os.path.join(top, name).encode()
    os.mkdir(path)
    libc.mount(b"none", path, b"tmpfs", 0, b"size=1m")
    libc.mount(None, path, None, flag, None)
    os.mkdir(path + b"/inner")
path = os.path.join(top, "slave").encode()
os.mkdir(path)
libc.mount(os.path.join(top, "shared").encode(), path, None, 0x1000, None)
libc.mount(None, path, None, 1 << 19, None)
def state():
    return [line.split(" - ")[0] for line in open("/proc/self/mountinfo") if top in line]
before = state()
code = subprocess.call(sys.argv[2:])
after = state()
print("\\n".join(before))
if before != after:
    print("CHANGED", before, after)
    code = 99
sys.exit(code)
"""
"""In a mount namespace of its own: a mount of each propagation type, then the rest as a command."""


@pytest.mark.parametrize("fs", ["host", "readonly", "overlay"])
@pytest.mark.parametrize("propagation", ["private", "slave"])
def test_host_mounts_stay_as_they_are(run: Run, fs: str, propagation: str) -> None:
    """Shared, slave, private and unbindable ones; what a test mounts in them is not seen."""
    if (fs, propagation) == ("overlay", "slave"):
        pytest.skip("is refused: see test_hide.py")
    top = run.path / "mounts"
    top.mkdir()
    run.tests(f"""
    LIBC = ctypes.CDLL(None, use_errno=True)

    @pytest.mark.parametrize("name", ["shared", "private", "unbindable", "slave"])
    def test_it(name):
        path = os.path.join({str(top)!r}, name)
        if os.path.isdir(path + "/inner") or name != "slave":
            assert LIBC.mount(b"none", os.fsencode(path + "/inner"), b"tmpfs", 0, None) == 0
            open(path + "/inner/new", "w").close()
    """)
    prefix = (sys.executable, "-c", OWN_MOUNTS, str(top))
    options = (f"--ns-fs={fs}", f"--ns-propagation={propagation}")
    result = run.isolated(*options, prefix=prefix)
    assert "CHANGED" not in result.out
    result.expect(passed=4)
    kinds = re.findall(r"relatime (shared|master|unbindable)", result.out)
    assert set(kinds) == {"shared", "master", "unbindable"}


FLOW = """
    LIBC = ctypes.CDLL(None, use_errno=True)
    TOP = {top!r}

    def test_it():
        open(os.path.join(TOP, "go"), "w").close()  # a fifo: the host mounts now
        with open(os.path.join(TOP, "done")):
            pass
        there = os.path.exists(os.path.join(TOP, "shared", "inner", "new"))
        assert there == {there}
"""

HOST = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
libc.unshare(0x20000)
libc.mount(None, b"/", None, 0x40000 | 0x4000, None)
top = sys.argv[1]
path = os.path.join(top, "shared").encode()
os.mkdir(path)
libc.mount(b"none", path, b"tmpfs", 0, b"size=1m")
libc.mount(None, path, None, 1 << 20, None)
os.mkdir(path + b"/inner")
for name in ("go", "done"):
    os.mkfifo(os.path.join(top, name))
process = subprocess.Popen(sys.argv[2:])
open(os.path.join(top, "go")).close()
libc.mount(b"none", path + b"/inner", b"tmpfs", 0, b"size=1m")
open(path + b"/inner/new", "w").close()
open(os.path.join(top, "done"), "w").close()
sys.exit(process.wait())
"""


@pytest.mark.parametrize(("propagation", "there"), [("private", False), ("slave", True)])
def test_later_mounts_of_the_host(run: Run, propagation: str, there: object) -> None:
    """What the host mounts while a test runs is seen by it under slave, and not under private."""
    top = run.path / "top"
    top.mkdir()
    run.tests(FLOW.format(top=str(top), there=there))
    prefix = (sys.executable, "-c", HOST, str(top))
    run.isolated(f"--ns-propagation={propagation}", prefix=prefix).expect(passed=1)
