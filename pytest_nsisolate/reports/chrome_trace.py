"""Write a session's timeline in the Chrome trace event format, for Perfetto.

Every duration is one complete event ("X"). Its row is what the format calls a thread:
the keeper has one, sandboxes have as many as there were at once, and so have tests. Two
events of a row are disjoint, or one is nested in the other, as the format asks for.
Times are microseconds since the session's begin.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROWS = ("keeper", "sandboxes", "tests")
_KEEPER, _SANDBOXES, _TESTS = range(1, 4)
#: Processes of one worker of xdist; their numbers are made up, and start anew for the next.
_STEP = 10

_Event = dict[str, Any]


def write(stream: TextIO, header: dict[str, Any], tests: Iterable[dict[str, Any]]) -> None:
    """Write the trace, one event a line."""
    about = {"versions": header["versions"], "host": header["host"], "options": header["options"]}
    stream.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)},\n"traceEvents": [')
    events = enumerate(_Timeline(header["start"]).events(tests))
    stream.writelines((",\n" if number else "\n") + json.dumps(event) for number, event in events)
    stream.write("\n]}\n")


class _Timeline:
    def __init__(self, start: float) -> None:
        self._start = start
        self._workers: dict[str | None, int] = {}
        self._named: set[tuple[int, int]] = set()
        self._sandboxes: dict[tuple[int, int], _Event] = {}  # the last of each row
        self._until: dict[tuple[int, int], int] = {}  # the end of the last test of each

    def events(self, tests: Iterable[dict[str, Any]]) -> Iterator[_Event]:
        """Yield all events of the tests that ran isolated."""
        for test in tests:
            if test["start"] is not None:
                yield from self._of(test)
        yield from self._sandboxes.values()

    def _of(self, test: dict[str, Any]) -> Iterator[_Event]:
        first = self._workers.setdefault(test["worker"], len(self._workers) * _STEP)
        begin, end = self._at(test["start"]), self._at(test["start"] + test["wall"])
        sandbox = test["sandbox"]
        where = (first + _SANDBOXES, 1 + sandbox["slot"] if sandbox is not None else 0)
        before = self._sandboxes.get(where)
        if sandbox is not None and before and before["name"] == f"sandbox {sandbox['id']}":
            # Of a group, whose tests the runner hears of some at a time.
            begin, end = self._by_phases(test, (begin, end))
            before["dur"] = max(before["dur"], end - before["ts"])
        elif sandbox is not None:
            if before:
                yield self._sandboxes.pop(where)
            name = f"sandbox {sandbox['id']}"
            ready = self._at(sandbox["ready"])
            asked = {"asked_us": self._at(sandbox["asked"]), "test": test["nodeid"]}
            where = (first + _KEEPER, 1)
            yield from self._names(test["worker"], where)
            yield _event(where, "keeper", name, (self._at(sandbox["begin"]), ready), asked)
            where = (first + _SANDBOXES, 1 + sandbox["slot"])
            yield from self._names(test["worker"], where)
            self._sandboxes[where] = _event(where, "sandbox", name, (ready, max(ready, end)))
        about = {
            "outcome": test["outcome"],
            "ending": test["ending"]["text"],
            **{name: value for name, value in test["usage"].items() if value is not None},
        }
        where = (first + _TESTS, 1 + test["lane"])
        begin = max(begin, self._until.get(where, 0))
        self._until[where] = end = max(begin, end)
        yield from self._names(test["worker"], where)
        yield _event(where, "test", test["nodeid"], (begin, end), about)
        for when in ("setup", "call", "teardown"):
            phase = test["phases"][when]
            if phase is not None:
                # The test process read its clock at other moments than the runner.
                begin = min(max(begin, self._at(phase["start"])), end)
                until = min(max(begin, self._at(phase["start"] + phase["seconds"])), end)
                yield _event(where, "phase", when, (begin, until))
                begin = until

    def _by_phases(self, test: dict[str, Any], span: tuple[int, int]) -> tuple[int, int]:
        """Return when a test ran by its own clock, if that is plausible."""
        setup, teardown = test["phases"]["setup"], test["phases"]["teardown"]
        if setup is None or teardown is None:
            return span
        begin = self._at(setup["start"])
        end = self._at(teardown["start"] + teardown["seconds"])
        # The clock of a test that sets it is not that of the others.
        plausible = span[0] <= begin <= end and end - begin <= span[1] - span[0] + 1000
        return (begin, end) if plausible else span

    def _at(self, moment: float) -> int:
        return max(0, round((moment - self._start) * 1e6))

    def _names(self, worker: str | None, where: tuple[int, int]) -> Iterator[_Event]:
        """Yield the events that name a row, the first time that it is used."""
        pid, tid = where
        kind = pid % _STEP
        if (pid, 0) not in self._named:
            self._named.add((pid, 0))
            name = " ".join(filter(None, (worker, _ROWS[kind - 1])))
            yield _name((pid, 0), "process_name", {"name": name})
            yield _name((pid, 0), "process_sort_index", {"sort_index": pid})
        if where not in self._named:
            self._named.add(where)
            title = {_KEEPER: "builds", _SANDBOXES: f"slot {tid}", _TESTS: f"lane {tid}"}[kind]
            yield _name(where, "thread_name", {"name": title})
            yield _name(where, "thread_sort_index", {"sort_index": tid})


def _name(where: tuple[int, int], name: str, args: dict[str, Any]) -> _Event:
    pid, tid = where
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": name, "args": args}


def _event(
    where: tuple[int, int],
    category: str,
    name: str,
    span: tuple[int, int],
    args: dict[str, Any] | None = None,
) -> _Event:
    pid, tid = where
    begin, end = span
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": begin,
        "dur": end - begin,
        "cat": category,
        "name": name,
        "args": args or {},
    }
