"""A pytest on a pseudo-terminal of its own, and what a user types and sees there."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hosts import DEADLINE, wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support import Result, Run

ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
CTRL_C, CTRL_Z, CTRL_D = "\x03", "\x1a", "\x04"


class Dialogue:
    """See the module. Whatever is waited for has a deadline."""

    def __init__(self, run: Run, *args: str, env: Mapping[str, str] | None = None) -> None:
        self.master, self.slave = pty.openpty()
        self.text = ""  # all that came
        self._seen = 0
        self.running = run.start(
            *args,
            env={"TERM": "dumb", "INPUTRC": "/dev/null", **(env or {})},
            prefix=[sys.executable, "-c", ON_TERMINAL],
            terminal=self.slave,
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """Read on until the text comes; what came before it since the last one."""
        while (place := self.text.find(text, self._seen)) < 0:
            self._read(f"{text!r} did not come")
        before, self._seen = self.text[self._seen : place], place + len(text)
        return before

    def answer(self, prompt: str, text: str) -> str:
        """Wait for the prompt, and type a line; what came before the prompt."""
        before = self.expect(prompt)
        self.type(text + "\n")
        return before

    def end(self) -> Result:
        """Read all that comes until pytest ends by itself."""
        os.close(self.slave)
        self.slave = -1
        with contextlib.suppress(EOFError):
            while True:
                self._read("no end")
        result = self.running.wait()
        left = wait_gone(self.running.marker)
        assert not left, f"left running: {left}\n{self.text}"
        return replace(result, out=self.text.replace("\r\n", "\n"))

    def _read(self, reason: str) -> None:
        end = time.monotonic() + DEADLINE
        # The terminal stays open here until the end is waited for: a run that is over shows.
        while not select.select([self.master], [], [], 0.1)[0]:
            over = self.running.process.poll() is not None
            if over and not select.select([self.master], [], [], 0)[0]:
                self._over(reason)
            assert time.monotonic() < end, f"{reason}:\n{self.text}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # nobody has it open any more
            data = b""
        if not data:
            self._over(reason)
        self.text += data.decode("utf-8", "replace")

    def _over(self, reason: str) -> None:
        if self.slave < 0:
            raise EOFError
        pytest.fail(f"{reason}, and pytest has ended:\n{self.text}")

    def close(self) -> None:
        self.running.kill()
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def dialogue(run: Run, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Dialogue]:
    """One that is closed in the end."""
    found = Dialogue(run, *args, env=env)
    try:
        yield found
    finally:
        found.close()


def shown(text: str) -> list[str]:
    """The lines that a user sees, without what differs from run to run."""
    body = re.split(r"^collect(?:ed|ing) .*$", text, maxsplit=1, flags=re.MULTILINE)[-1]
    body = re.sub(r"\bin \d+\.\d+s(?: \(\d+:\d\d:\d\d\))?", "in TIME", body)
    body = re.sub(r"[=>]+", "=", body)
    return [line.rstrip() for line in body.strip().splitlines()]
