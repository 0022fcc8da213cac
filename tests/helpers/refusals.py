"""Bad input in runs of pytest: the tests that have it, and what a run has to say of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .run import Result, Run

GOOD = """
    def test_good():
        open("ran", "w").close()
"""


def is_refused(run: Run, result: Result, *says: str) -> None:
    """The run ended as a usage error that says all this, and no test ran."""
    text = result.out + result.err
    assert result.ret == pytest.ExitCode.USAGE_ERROR, str(result)
    assert not result.phases, str(result)
    assert not (run.path / "ran").exists()
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text
    for part in says:
        assert part in text, f"{part!r} is not said\n{result}"


def said(result: Result) -> dict[str, str]:
    """What is said of each test, by its node id."""
    found = re.findall(
        r"^(?:ERROR: )?(test_it\.py::\w+): (.*)$", result.out + result.err, re.MULTILINE
    )
    return dict(found)


def bad_tests(arguments: list[str]) -> str:
    """A test for each of the markers' arguments."""
    test = "@pytest.mark.isolated({})\ndef test_bad_{}():\n    open('ran', 'w').close()\n"
    return "\n".join(test.format(one, number) for number, one in enumerate(arguments))
