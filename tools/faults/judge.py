"""What is wrong with how a session with a fault ended: nothing, for a fault that was survived."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from faults.sessions import EXPECTED, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.supervisor import Fault
    from helpers.run import Phase, Result

HEADLINE = re.compile(
    r"(SANDBOX FAILED at \w.*: E[A-Z]+|CRASHED with signal \d+ \(\w+\)|STOPPED by signal .*|"
    r"EXITED with code \d+ before reporting|TIMED OUT after .*|REPORT BROKEN: .+|"
    r"OUT OF MEMORY: .*|TOO MANY PROCESSES: .*|TOO MUCH OUTPUT: .*)\n"
)
WORSE = {
    "passed": {"failed", "error", "passed+error"},
    "failed": {"error", "failed+error"},
    "skipped": {"failed", "error", "skipped+error"},
}
"""What may become of a test in place of its own ending."""


def complaints(fault: Fault, result: Result) -> Iterator[str]:
    """Every rule that this ending breaks."""
    said = result.out + result.err
    if not fault.number and fault.site.role == "runner":
        if result.ret != -9:
            yield f"exit code {result.ret} of a runner that was killed"
        return
    if "INTERNALERROR" in said:
        yield "INTERNALERROR"
    if "Traceback (most recent call last)" in result.err:
        yield "a traceback on standard error"
    bad = [phase for phase in result.phases if phase.outcome == "failed"]
    if result.ret not in (0, 1) and not (result.ret == 4 and "ERROR: " in result.err):
        yield f"exit code {result.ret}"
    if result.ret != (1 if bad else 0) and result.ret in (0, 1):
        yield f"exit code {result.ret} with {len(bad)} failures"
    if set(result.verdicts) != set(VERDICTS):
        yield f"tests without an outcome: {sorted(set(VERDICTS) - set(result.verdicts))}"
    for name, verdict in result.verdicts.items():
        wanted = VERDICTS.get(name, "")
        if verdict != wanted and verdict not in WORSE.get(wanted, ()):
            yield f"{name} {verdict or 'without an outcome'}, and not {wanted}"
    for phase in bad:
        yield from _unclear(phase, fault)


def _unclear(phase: Phase, fault: Fault) -> Iterator[str]:
    """What the text of a failure lacks."""
    text = phase.text + "\n"
    if EXPECTED in text:
        return
    where = f"{phase.nodeid} ({phase.when})"
    headline = HEADLINE.match(text)
    if headline is None:
        names = (errno.errorcode.get(fault.number, "none"), os.strerror(fault.number))
        if not any(name in text for name in names):
            yield f"{where} does not say what happened:\n{text}"
    elif headline[1].startswith("SANDBOX FAILED"):
        if not ("\nwhy: " in text and "\nmend: " in text):
            yield f"{where} names no next step:\n{text}"
    elif len(text.splitlines()) < 3:
        yield f"{where} names no next step:\n{text}"
