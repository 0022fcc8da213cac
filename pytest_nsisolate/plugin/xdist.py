"""Carry texts from a worker of pytest-xdist to the controller, which owns the terminal."""

from __future__ import annotations

from typing import Any

import pytest

_USAGE_ERROR = "nsisolate_usage_error"
_LAST_LINES = "nsisolate_last_lines"
#: Lines that are printed at the end of the session.
last_lines_key: pytest.StashKey[list[str]] = pytest.StashKey()


def send_usage_error(config: pytest.Config, text: str) -> None:
    """Send a usage error from a worker to the controller."""
    output: Any = getattr(config, "workeroutput", None)
    if output is not None:
        output[_USAGE_ERROR] = text


def raise_usage_error(node: Any) -> None:
    """Raise, in the controller, the usage error that the worker *node* sent.

    Raises:
        pytest.UsageError: the worker sent one.
    """
    text = getattr(node, "workeroutput", {}).get(_USAGE_ERROR)
    if text is not None:
        raise pytest.UsageError(text)


def print_at_end(config: pytest.Config, lines: list[str]) -> None:
    """Print *lines* at the end of the session. A worker sends them to the controller."""
    output: Any = getattr(config, "workeroutput", None)
    if output is not None:
        output[_LAST_LINES] = lines
    else:
        config.stash.setdefault(last_lines_key, []).extend(lines)


def take_last_lines(node: Any) -> None:
    """Print, in the controller and at the end, what the worker *node* sent."""
    lines = getattr(node, "workeroutput", {}).get(_LAST_LINES)
    if lines:
        print_at_end(node.config, list(map(str, lines)))
