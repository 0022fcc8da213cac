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

from .hosts import DEADLINE, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .run import Result, Run

    Talk = Callable[["Dialogue"], object]

ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
# What a shell does for a command: a process group in the foreground, and, when it was stopped,
# the terminal back, until a line says to go on.
WITH_JOB_CONTROL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        os._exit(os.waitstatus_to_exitcode(status))
    os.tcsetpgrp(0, os.getpgrp())
    os.write(1, b"stopped")
    # The one who reads here is the shell: the test is stopped as well.
    line = os.read(0, 99).strip()
    os.tcsetpgrp(0, pid)
    os.write(1, b"[shell read " + line + b"]")
    os.killpg(pid, signal.SIGCONT)
"""
PDB = "(Pdb) "
FAILS = """
    @pytest.fixture
    def resource():
        yield "open"
        print("resource closed")

    def test_fails(resource):
        value = 41
        print("said before")
        assert value == 42

    def test_next():
        pass
"""
# In one line, so that Ctrl-C finds it there however soon it comes; and without print, in which
# Python's own debugger can't be called.
LOOPS = """
    def test_loops():
        found, said = 0, []
        breakpoint()
        while not found: said or said.append(os.write(1, b"it loops\\n")); time.sleep(0.01)

    def test_next():
        pass
"""
CTRL_A, CTRL_C, CTRL_Z = "\x01", "\x03", "\x1a"
_AGAIN = 5.0
"""Seconds after which a key is typed again."""


class Dialogue:
    """See the module. Whatever is waited for has a deadline."""

    def __init__(
        self,
        run: Run,
        *args: str,
        env: Mapping[str, str] | None = None,
        prefix: Iterable[str] = (),
        job_control: bool = False,
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.text = ""  # all that came
        self._seen = 0
        self.running = run.start(
            *args,
            env={"TERM": "dumb", "INPUTRC": "/dev/null", **(env or {})},
            prefix=[
                *prefix,
                sys.executable,
                "-c",
                WITH_JOB_CONTROL if job_control else ON_TERMINAL,
            ],
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

    def interrupt(self, text: str) -> None:
        """Type Ctrl-C to a prompt until the text comes.

        A signal that comes after the prompt and before the read is noticed after the next key.
        """
        while text not in self.text[self._seen :]:
            self.type(CTRL_C)
            end = time.monotonic() + _AGAIN
            while text not in self.text[self._seen :] and time.monotonic() < end:
                if select.select([self.master], [], [], 0.1)[0]:
                    self._read(f"{text!r} did not come")
        self.expect(text)

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
def dialogue(
    run: Run,
    *args: str,
    env: Mapping[str, str] | None = None,
    prefix: Iterable[str] = (),
    job_control: bool = False,
) -> Iterator[Dialogue]:
    """One that is closed in the end.

    Args:
        job_control: a process like a shell stands between pytest and the terminal.
    """
    found = Dialogue(run, *args, env=env, prefix=prefix, job_control=job_control)
    try:
        yield found
    finally:
        found.close()


def shown(text: str) -> list[str]:
    """The lines that a user sees, without what differs from run to run."""
    body = re.split(r"^collect(?:ed|ing) .*$", text, maxsplit=1, flags=re.MULTILINE)[-1]
    body = re.sub(r"\bin \d+\.\d+s(?: \(\d+:\d\d:\d\d\))?", "in TIME", body)
    body = re.sub(r"=+", "=", body)
    body = re.sub(r"(\^C)+", "^C", body)
    body = re.sub(r"0x[0-9a-f]+", "0xADDRESS", body)
    # In which part of its line a test was, where Python knows, is a matter of chance.
    body = re.sub(r"^ *\^+\s*\n", "", body, flags=re.MULTILINE)
    return [line.rstrip() for line in body.strip().splitlines()]


def same_talk(run: Run, talk: Talk, *args: str, more: tuple[str, ...] = ()) -> Result:
    """Talk with a plain run and with an isolated one: the same to see, the same ending.

    Gives the isolated one.
    """
    results = []
    for extra in ((), ("--ns-isolate", *more)):
        with dialogue(run, *args, *extra) as there:
            talk(there)
            results.append(there.end())
    plain, isolated = results
    assert shown(isolated.out) == shown(plain.out)
    assert isolated.verdicts == plain.verdicts
    assert isolated.ret == plain.ret
    return isolated


def lines(*typed: str) -> Talk:
    """Answer each prompt of the debugger with the next line."""

    def talk(there: Dialogue) -> None:
        for line in typed:
            there.answer(PDB, line)

    return talk
