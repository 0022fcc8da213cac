"""A real headless browser, driven through its own debugging protocol over a pipe.

Assumes a Chromium: its protocol (https://chromedevtools.github.io/devtools-protocol/)
travels as JSON with a NUL after each message, on descriptors 3 and 4 of the browser.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

from .hosts import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@functools.cache
def executable() -> str | None:
    """A browser that speaks the protocol, if there is one; ``NSISOLATE_BROWSER`` may name it."""
    named = os.environ.get("NSISOLATE_BROWSER")
    return next(filter(None, map(shutil.which, [named] if named else NAMES)), None)


@functools.cache
def lacks_browser() -> str | None:
    """Why there is no browser to be driven; None when there is."""
    if executable() is None:
        return f"none of {', '.join(NAMES)} is installed"
    try:
        with opened() as page:
            page.evaluate("1")
    except (OSError, EOFError, TimeoutError) as error:
        return f"{executable()} does not answer: {error!r}"
    return None


class Page:
    """One page of the browser."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = answer["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> Any:
        """Call a method of the protocol; what comes meanwhile is kept in ``events``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE
        while b"\0" not in self._buffer:
            if not select.select([self._reader], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser is silent")
            data = os.read(self._reader, 1 << 16)
            if not data:
                raise EOFError("the browser has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file, and wait until its scripts have run."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri() + fragment)
        while not self.evaluate(
            "location.protocol == 'file:' && document.readyState == 'complete'"
        ):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse where the element is."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView()")
        x, y = self.evaluate(
            "(() => { const box = document.querySelector("
            + json.dumps(selector)
            + ").getBoundingClientRect();"
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key, on whatever has the focus."""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **extra,
            )

    @property
    def complaints(self) -> list[str]:
        """Exceptions and messages of the console since the page was opened."""
        self.evaluate("0")  # what was on its way is here now
        return [
            json.dumps(event)
            for event in self.events
            if event.get("method")
            in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        ]

    @property
    def requests(self) -> list[str]:
        """What the page loaded, since it was opened."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]


def high_pipe() -> tuple[int, int]:
    """A pipe, neither end of which is where the browser looks for one."""
    ends = []
    for fd in os.pipe():
        ends.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(fd)
    return ends[0], ends[1]


@contextlib.contextmanager
def opened() -> Iterator[Page]:
    """A browser with an empty page and a profile of its own."""
    program = executable()
    assert program is not None
    profile = tempfile.mkdtemp(prefix="browser-")
    theirs, writer = high_pipe()
    reader, ours = high_pipe()
    process = subprocess.Popen(
        [
            # The shell puts the pipes where the browser looks for them.
            *("bash", "-c", f'exec 3<&{theirs} 4>&{ours}; exec "$@"', "browser", program),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs, ours),
        env={**os.environ, "TMPDIR": profile},  # it leaves something there, too
        start_new_session=True,
    )
    os.close(theirs)
    os.close(ours)
    try:
        yield Page(reader, writer)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reader)
        os.close(writer)
        shutil.rmtree(profile, ignore_errors=True)
