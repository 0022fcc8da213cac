"""What lets a test process talk with the user: pytest's debugger, and standard input.

Everything here is done once, in the template; a test that talks with nobody runs no line of it.

Relies on names of pytest that are not public (`pytestPDB._init_pdb`, by which each of its
debuggers begins, and `CaptureManager._global_capturing`): its hook ``pytest_enter_pdb`` comes
after the first words on the terminal. `tests/test_dialogue.py` holds them.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from _pytest.debugging import pytestPDB

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

#: Values of PYTHONBREAKPOINT that call no debugger but pytest's.
_USUAL = ("", "0", "pdb.set_trace")


def announce(ask: Callable[[str], None]) -> None:
    """Have *ask* called with the name of its method before a debugger says its first word."""
    method: Any = pytestPDB.__dict__["_init_pdb"].__func__
    # Where pytest runs in an isolated test, this has been done in the process around it.
    original = getattr(method, "nsisolate_original", method)

    def _init_pdb(cls: Any, /, method: str, *args: object, **kwargs: object) -> Any:
        ask(method)
        return original(cls, method, *args, **kwargs)

    _init_pdb.nsisolate_original = original  # type: ignore[attr-defined]
    pytestPDB._init_pdb = classmethod(_init_pdb)  # type: ignore[assignment]
    if os.environ.get("PYTHONBREAKPOINT", "") not in _USUAL:
        # A debugger that pytest doesn't know. A function in the place of sys.breakpointhook
        # would be the frame that it stops in.
        def heed(event: str, arguments: object) -> None:
            if event == "builtins.breakpoint":
                ask("breakpoint")

        sys.addaudithook(heed)


def share_input(config: pytest.Config) -> None:
    """Have each test process leave in standard input what it does not ask for.

    A terminal gives one line at a time. Of a pipe or a file, the first process that reads a
    line would take all there is, and keep it.
    """
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    capture: Any = getattr(getattr(manager, "_global_capturing", None), "in_", None)
    if capture is None:
        sys.stdin = _frugal(sys.stdin, 0)
        return
    below = getattr(capture, "syscapture", capture)
    # With --capture=fd this is where standard input is while it is captured.
    below._old = _frugal(below._old, getattr(capture, "targetfd_save", 0))


def _frugal(stream: Any, place: int) -> Any:
    """*stream*, which reads descriptor 0, or one that reads no more than it is asked for."""
    try:
        mode = os.fstat(place).st_mode
        if stream.fileno() != 0 or not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            return stream
    except (OSError, AttributeError, ValueError):  # none, not a file, or closed
        return stream
    return io.TextIOWrapper(
        _Frugal(0, closefd=False), encoding=stream.encoding, errors=stream.errors
    )


class _Frugal(io.FileIO):
    """A raw stream that text is decoded from byte by byte."""

    def read1(self, size: int = -1) -> bytes:
        return self.read(1) or b""
