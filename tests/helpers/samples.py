"""Modules of tests/samples, as texts that runs of pytest get."""

from __future__ import annotations

from .project import ROOT


def text(name: str) -> str:
    """The source of a module of tests/samples."""
    return (ROOT / "tests" / "samples" / f"{name}.py").read_text("utf-8")


MIXED, RECORDER, SAFE = map(text, ("mixed", "recorder", "safe"))
