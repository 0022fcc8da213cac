"""Lend the controlling terminal to the process group of a command, and take it back.

The command has a process group of its own, so that what it sends to its group does
not reach whoever started it. The terminal's keys (Ctrl-C, Ctrl-Z) go to the group in
the foreground, and only that one may read.

Assumes: the caller blocks SIGTTOU, so that a group in the background may do this.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, final


@final
class Terminal:
    """See the module; without a controlling terminal everything here does nothing."""

    def __init__(self) -> None:
        self._lent = False
        self._modes: Any = None
        try:
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
            return
        self._modes = self.modes()

    @property
    def there(self) -> bool:
        """Whether this process has a controlling terminal."""
        return self._fd >= 0

    def is_for_command(self) -> bool:
        """Return whether the command talks with the terminal at both ends.

        In a pipeline (``run -- make | less``) another process may need it; there the
        command gets it when it asks (SIGTTIN, SIGTTOU).
        """
        try:
            return self.there and os.tcgetpgrp(0) >= 0 and os.isatty(1)
        except OSError:
            return False

    def in_foreground(self) -> bool:
        """Return whether this process is in the terminal's foreground."""
        try:
            return self.there and os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False

    def lend(self, group: int) -> bool:
        """Put *group* into the foreground if this process's was; return whether it is there."""
        if not self.in_foreground():
            return self._lent
        try:
            os.tcsetpgrp(self._fd, group)
        except OSError:
            return False
        self._lent = True
        return True

    def take_back(self, *, modes: bool = False) -> None:
        """Undo `lend`.

        Args:
            modes: also set the modes (echo, raw) to what they were at first: whoever was
                killed could not.
        """
        if not self._lent:
            return
        self._lent = False
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._fd, os.getpgrp())
        if modes:
            self.set_modes()

    def modes(self) -> Any:
        """Read the modes (echo, raw); None if they can't be read."""
        if sys.platform != "win32":
            import termios  # noqa: PLC0415 -- Windows has none

            with contextlib.suppress(termios.error):
                return termios.tcgetattr(self._fd) if self.there else None
        return None

    def set_modes(self, modes: Any = None) -> None:
        """Set the modes to these, or to what they were at first, if the terminal is ours."""
        modes = modes or self._modes
        if sys.platform != "win32" and modes is not None and self.in_foreground():
            import termios  # noqa: PLC0415 -- Windows has none

            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, modes)

    def close(self) -> None:
        """Take it back and close it; a second call is no error."""
        self.take_back()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
