"""Read and shorten the tracebacks that faulthandler wrote in a test process."""

from __future__ import annotations

from .outcome import Kind

#: How faulthandler begins the traceback of a crash.
_FATAL = "Fatal Python error"
#: The runner writes it after each dump of the stacks that it requested.
TRACE_MARK = "\0"

_MACHINERY = ("/_pytest/", "/pluggy/", "/pytest_nsisolate/")
#: The module whose frames stand between pytest and the template.
_ENTRY = "/pytest_nsisolate/testprocess/body.py"


def has_crash(trace: str) -> bool:
    """Return whether a fatal error is in what faulthandler wrote."""
    return _FATAL in trace


def relevant(trace: str, kind: Kind) -> str:
    """Select the part that explains an ending from all that faulthandler wrote."""
    if kind is Kind.TIMED_OUT:
        return last_stacks(trace)
    if kind is Kind.OUT_OF_MEMORY:
        # The process may have been killed before it wrote the last dump.
        written = [part for part in trace.split(TRACE_MARK) if part.strip()]
        return written[-1] if written else ""
    # Dumps before the crash explain nothing. A mark may stand in the middle of the crash.
    return "".join(trace[trace.find(_FATAL) :].split(TRACE_MARK)[:2]) if has_crash(trace) else ""


def last_stacks(trace: str) -> str:
    """Select the dump that was requested last."""
    return trace.rpartition(TRACE_MARK)[2]


def trim_trace(trace: str) -> str:
    """Remove the frames through which pytest calls every test.

    They are the same each time: from the template up to pytest's call of the
    test, most recent call first.
    """
    kept: list[str] = []
    for block in trace.split("\n\n"):
        lines = block.splitlines()
        entry = None
        if "most recent call first" in block:
            frames = enumerate(lines)
            entry = next((i for i, one in frames if _ENTRY in one), None)
        if entry is not None:
            while entry > 1 and any(name in lines[entry - 1] for name in _MACHINERY):
                entry -= 1
            lines[entry:] = ["  ... (called by pytest)"]
        kept.append("\n".join(lines))
    return "\n\n".join(kept)
