"""The runner's side of one test's report stream, driven by bytes: what a fuzzer calls.

A `Ground` stands for a session with one test, which fails. `Ground.reports` has the runner take
in a stream as if that test's process had sent it, up to the reports that pytest gets.

Run as a program it is a target of atheris (``tox -e fuzz``), with libFuzzer's arguments; an
input is taken as a stream, or as mutations of a real one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import unittest.mock
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.config import _prepareconfig
from _pytest.runner import runtestprotocol

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.messages import ENDED, MESSAGE, PACKETS
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.reports import brief, replay, serialise
from pytest_nsisolate.reports.brief import briefly
from pytest_nsisolate.reports.replay import Replay
from pytest_nsisolate.reports.synthetic import failure
from pytest_nsisolate.runner import frame_intake
from pytest_nsisolate.runner.endings import Endings
from pytest_nsisolate.runner.event_loop import EventLoop
from pytest_nsisolate.runner.processes import Parts
from pytest_nsisolate.runner.servers.helpers import Helpers
from pytest_nsisolate.runner.servers.template_client import Template
from pytest_nsisolate.runner.test_process import State, TestRun
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator


KINDS = (
    "report", "warning", "write", "output", "xml attributes", "too long", "failed subtests",
    "end", "finalised", "snapshot over", "exceeded", "ran", "turn", "failed", "ready",
    "exported", "coverage", "outcome",
)  # fmt: skip


class Ground:
    """See the module.

    Attributes:
        whole: its reports, serialised.
        frames: what the process of the test would send, frame by frame.
    """

    def __init__(self, folder: Path) -> None:
        test = folder / "test_it.py"
        test.write_text("def test_fails():\n    assert 0, 'it has to fail'\n", "utf-8")
        arguments = ["-c", os.devnull, f"--rootdir={folder}", "--capture=no", "-p", "nsisolate"]
        for name in ("cacheprovider", "terminal"):
            arguments += ["-p", f"no:{name}"]
        with unittest.mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"):
            self.config = _prepareconfig([*arguments, str(test)])
        self.config._do_configure()
        self.session = pytest.Session.from_config(self.config)
        self.config.hook.pytest_sessionstart(session=self.session)
        self.session.perform_collect()
        (self.item,) = self.session.items
        encode = self.config.hook.pytest_report_to_serializable
        reports = runtestprotocol(self.item, log=False)
        self.whole: list[dict[str, Any]] = [
            encode(config=self.config, report=one) for one in reports
        ]
        told = [briefly(one, self.item, None) for one in reports]
        self.frames = [
            wire.encode("report", short or whole)
            for short, whole in zip(told, self.whole, strict=True)
        ]
        self.frames.append(wire.encode("end", {"failed": True, "wall": 0.1, "user": 0.1}))
        ours, self._template = socket.socketpair(socket.AF_UNIX, PACKETS)
        process = subprocess.Popen(["true"])
        template = Template(process.pid, ours)
        helpers = Helpers(lambda: None, lambda keeper, own: template)
        parts = Parts(plans=[], failures=lambda: 0)
        self.loop = EventLoop(helpers, parts, timeout_signal=0, stack_signal=0)
        self._process = process

    def close(self) -> None:
        """Let go of all it holds."""
        self.loop.close()
        self._template.close()
        self._process.wait()
        self.config._ensure_unconfigure()

    def reports(self, stream: bytes, status: int = 0) -> list[pytest.TestReport]:
        """The reports of a test whose process has sent this and then ended with that status."""
        test = TestRun(0)
        process = self.loop.create([test], None, Spec())
        assert self.loop.fork(process)
        fds = socket.recv_fds(self._template, 1 << 16, 32)[1]
        self.loop.send_next(process, -1)
        os.set_blocking(fds[0], False)
        view = memoryview(stream)
        while view and process.state is State.RUNNING:
            with contextlib.suppress(BrokenPipeError):  # it has been given up
                view = view[os.write(fds[0], view[: 1 << 15]) :]
                self.loop.drain(process)
                continue
            break
        for fd in fds:
            os.close(fd)
        self._template.send(MESSAGE.pack(ENDED, process.number, status))
        while test.outcome is None:
            self.loop.wait()
        assert process.state is State.ENDED
        assert self.loop.idle
        return self._replay(test)

    def _replay(self, test: TestRun) -> list[pytest.TestReport]:
        assert test.outcome is not None
        replay = Replay(self.item, log=False)
        try:
            while test.frames:
                replay.take(*test.frames.popleft())
            replay.finish(test.outcome)
        except (pytest.exit.Exception, KeyboardInterrupt):
            # What a test may do to its session: it is ended, and that is no pass.
            replay.finish_with(self._aborted())
        finally:
            self.session.shouldfail = self.session.shouldstop = False
            self.item.user_properties.clear()
            self.item._report_sections.clear()
        return replay.reports

    def _aborted(self) -> pytest.TestReport:
        return failure(self.item, "call", Outcome(Kind.EXITED))


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """A ground in a directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        one = Ground(Path(folder))
        try:
            yield one
        finally:
            one.close()


def mutated(frames: list[bytes], data: bytes) -> bytes:
    """The stream of these frames as *data* has it changed, four bytes a change; no forgery."""
    frames = list(frames)
    for at in range(0, len(data) - 3, 4):
        what, where, much, value = data[at : at + 4]
        index = where % len(frames)
        frame = bytearray(frames[index])
        place = (much << 8 | value) % max(1, len(frame))
        if what % 6 == 0:
            frame[place : place + 1] = bytes([value])
        elif what % 6 == 1:
            del frame[place:]
        elif what % 6 == 2:
            frame[place:place] = bytes([value]) * much
        elif what % 6 == 3:
            frames.insert(index, bytes(frame))
            continue
        elif what % 6 == 4:
            other = much % len(frames)
            frames[index], frames[other] = frames[other], frames[index]
            continue
        else:
            kind = KINDS[much % len(KINDS)]
            frames.insert(index, wire.encode(kind, [value, None, "x", {}, []][value % 5]))
            continue
        frames[index] = bytes(frame)
    return b"".join(frames)


def check(place: Ground, stream: bytes, status: int = 0) -> None:
    """The rules: nothing is raised, the test has its phases, and it has not passed.

    Raises:
        AssertionError: one of them is broken.
    """
    reports = place.reports(stream, status)
    assert reports[0].when in ("setup", "call")
    assert {one.outcome for one in reports} <= {"passed", "failed", "skipped", "rerun"}
    assert any(one.failed for one in reports)


def main() -> None:
    atheris: Any = importlib.import_module("atheris")  # of its own environment

    with ground() as one:

        def target(data: bytes) -> None:
            if data[:1] == b"\0":
                check(one, data[1:])
            else:
                check(one, mutated(one.frames, data[1:]), status=data[0] if data else 0)

        for owner in (
            wire.Decoder,
            EventLoop,
            Endings,
            Replay,
            Outcome,
            brief,
            frame_intake,
            serialise,
            replay,
        ):
            for value in vars(owner).values():
                if isinstance(value, FunctionType) and "nsisolate" in value.__module__:
                    atheris.instrument_func(value)
        atheris.Setup(sys.argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
