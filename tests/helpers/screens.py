"""Commands on a pseudo-terminal of their own, typed at and read like a person does."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .hosts import DEADLINE, become, wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .commands import Commands

ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Screen:
    """A pseudo-terminal with a session of its own on it."""

    def __init__(self, commands: Commands, *words: str, env: Mapping[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.text = ""
        self.commands = commands
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *become(commands.uid), *words],
            cwd=commands.path,
            env=commands.environment({"PS1": "prompt:", "TERM": "dumb", **env}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        """Read on until the text comes; what came up to it is forgotten."""
        end = time.monotonic() + DEADLINE
        while text not in self.text:
            ready = select.select([self.master], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"{text!r} did not come: {self.text!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # nobody has it open any more
                data = b""
            assert data, f"{text!r} did not come before the end: {self.text!r}"
            self.text += data.decode()
        self.text = self.text.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        assert not wait_gone(self.commands.marker)


@contextmanager
def screen(
    commands: Commands, *words: str, env: Mapping[str, str] | None = None
) -> Iterator[Screen]:
    """One that is closed in the end."""
    found = Screen(commands, *words, env=env or {})
    try:
        yield found
    finally:
        found.close()
