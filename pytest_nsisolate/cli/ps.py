"""``nsisolate ps`` and ``nsisolate gc``: list living sandboxes, and end kept ones."""

from __future__ import annotations

import time

from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.core.text import age
from pytest_nsisolate.runner.kept import live

#: How many processes of a sandbox are named.
_NAMED = 10
#: How much of a command line is shown, in characters.
_WIDTH = 80


def as_text() -> list[str]:
    """Return a line for each living sandbox, and below it one for each process in it."""
    found = live.everything()
    idle = [one for one in found if one.until is None and not one.processes]
    lines = [line for one in found if one not in idle for line in _lines(one)]
    if lines:
        lines.insert(0, f"{'ID':<9}{'AGE':>8}{'LEFT':>8}  TEST")
    if idle:
        lines.append(f"{len(idle)} more, in which nothing runs, are ready for tests to come")
    away = [entry.id for entry in live.elsewhere()]
    lines += [f"{name} is kept in another pid namespace: enter it from there" for name in away]
    return [_plain(line) for line in lines] or ["no sandbox is alive that you may see"]


def _lines(one: live.Living) -> list[str]:
    left = "-" if one.until is None else age(max(0.0, one.until - time.time()))
    what = one.why
    if one.tests:
        also = f" and {len(one.tests) - 1} before it" if len(one.tests) > 1 else ""
        what = f"{one.tests[-1]}{also} ({one.why})"
    elif len(what) > _WIDTH:
        what = what[:_WIDTH] + "..."
    first = f"{one.id:<9}{age(one.age):>8}{left:>8}  {what}"
    return [first, *(f"{'':<27}{text}" for text in _processes(one.processes))]


def _processes(pids: tuple[int, ...]) -> list[str]:
    """Return a line for each process, with its pid inside the sandbox."""
    found = [process for process in map(proc.read, pids) if process is not None]
    lines = [str(_cut(one)) for one in found[:_NAMED]]
    if len(found) > _NAMED:
        lines.append(f"and {len(found) - _NAMED} more")
    return lines or ["nothing runs in it"]


def _plain(line: str) -> str:
    """Replace in *line* what a terminal would take for a command, and what can't be encoded."""
    return "".join(one if one.isprintable() else "?" for one in line)


def _cut(one: proc.Process) -> proc.Process:
    command = one.command
    return one._replace(command=command[:_WIDTH] + "...") if len(command) > _WIDTH else one


def end(words: list[str] | None) -> tuple[list[str], list[str]]:
    """End kept sandboxes: those with these ids, or all of this user's.

    Returns:
        a line for each that has ended, and one for each that could not be.
    """
    kept = {one.id: one for one in live.kept(own=words is None)}
    ended, left = [], []
    for word in list(kept) if words is None else words:
        one = kept.get(word)
        if one is None:
            left.append(f"there is no kept sandbox {word} (`nsisolate ps` lists them)")
        elif live.end(one):
            ended.append(f"ended {one.id}, the sandbox of {one.tests[-1]}")
        else:
            left.append(f"could not be ended: {one.id}, the sandbox of {one.tests[-1]}")
    return [_plain(line) for line in ended], [_plain(line) for line in left]
