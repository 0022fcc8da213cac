"""The private names of pytest's capture and terminal that this plugin relies on."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest

from pytest_nsisolate.testprocess.output_files import Outputs

_pytest_capture: Any = pytest.importorskip("_pytest.capture")


class Manager:
    """A stand-in for pytest's CaptureManager: `Outputs` reads this one attribute of it."""

    def __init__(self, method: str) -> None:
        self._global_capturing = _pytest_capture._get_multicapture(method)


def outputs_of(manager: object, monkeypatch: pytest.MonkeyPatch, config: pytest.Config) -> Outputs:
    """The outputs of a session whose capture manager is this one."""
    with monkeypatch.context() as patch:
        patch.setattr(config.pluginmanager, "getplugin", lambda name: manager)
        return Outputs(config)


def test_names_of_the_capture_manager(pytestconfig: pytest.Config) -> None:
    manager: Any = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert hasattr(manager, "_global_capturing")
    capturing = _pytest_capture._get_multicapture("fd")
    for capture in (capturing.in_, capturing.out, capturing.err):
        assert isinstance(capture.targetfd_save, int)
        assert isinstance(capture.tmpfile.fileno(), int)
    capturing.start_capturing()
    capturing.stop_capturing()


@pytest.mark.parametrize("method", ["fd", "sys", "tee-sys"])
def test_output_goes_to_the_files(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What is printed after `adopt` is in the new file, and pytest reads it as ever."""
    manager = Manager(method)
    capturing = manager._global_capturing
    capturing.start_capturing()
    file = os.memfd_create("out")
    try:
        outputs = outputs_of(manager, monkeypatch, pytestconfig)
        assert (method == "fd") == bool(outputs.descriptors)
        outputs.adopt(os.dup(file), os.memfd_create("err"), lambda name, text: None)
        print("printed")  # noqa: T201  this is what is captured
        read = capturing.readouterr()
        assert os.pread(file, 100, 0) == (b"" if method == "fd" else b"printed\n")
    finally:
        capturing.stop_capturing()
        os.close(file)
    assert read.out == "printed\n"


@pytest.mark.parametrize("has_descriptor", [True, False], ids=["file", "memory"])
def test_without_capture(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, *, has_descriptor: bool
) -> None:
    """Output passes through at once, or is sent where there is only memory, and is copied."""
    file, terminal = os.memfd_create("out"), os.memfd_create("terminal")
    stream = open(terminal, "w", encoding="utf-8") if has_descriptor else io.StringIO()  # noqa: SIM115
    sent: list[tuple[str, str]] = []
    with monkeypatch.context() as patch, stream:
        patch.setattr("sys.stdout", stream)
        patch.setattr("sys.stderr", io.StringIO())
        manager = Manager("no")
        outputs_of(manager, monkeypatch, pytestconfig).adopt(
            os.dup(file), os.memfd_create("err"), lambda name, text: sent.append((name, text))
        )
        print("printed")  # noqa: T201  this is what is copied
        assert os.pread(file, 100, 0) == b"printed\n"
        if has_descriptor:
            assert os.pread(terminal, 100, 0) == b"printed\n"
        else:
            assert "".join(text for _, text in sent) == "printed\n"
    os.close(file)


def test_terminal_file(pytestconfig: pytest.Config) -> None:
    """The terminal writes to a file that can be replaced."""
    terminal: Any = pytestconfig.pluginmanager.getplugin("terminalreporter")
    if terminal is None:
        pytest.skip("the terminal reporter is switched off")
    assert hasattr(terminal._tw, "_file")
    written = io.StringIO()
    writer = pytest.TerminalReporter(pytestconfig, written)
    assert writer._tw._file is written
