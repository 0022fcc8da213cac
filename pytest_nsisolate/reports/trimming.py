"""Cut a report that is too large, in the test process, to both ends of each text.

Outcome, phase, exception, location and the order of what there is stay as they are.
"""

from __future__ import annotations

from typing import Any

from pytest_nsisolate.core.wire import safe_repr

#: How much is left of each end of a text, in characters: as much as fits.
LIMITS = (1 << 20, 1 << 17, 1 << 14, 1 << 11)
#: Of other lists, one entry for so many characters that a text might have.
_SHARE = 64
_DEEP = 50
_PLAIN = (int, float, bool, type(None))


def cut(value: Any, limit: int, depth: int = 0) -> Any:
    """Cut *value*, plain data, to at most *limit* characters at each end of each text."""
    if isinstance(value, str):
        return cut_text(str.__str__(value), limit)
    if isinstance(value, _PLAIN) or depth > _DEEP:
        return value
    if isinstance(value, dict):
        keys, most = list(value), max(limit // _SHARE, 8)
        if len(keys) > most:
            keys = keys[: most // 2] + keys[-(most // 2) :]
        return {key: cut(value[key], limit, depth + 1) for key in keys}
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(one, str) for one in value):
            return _cut_lines([str.__str__(one) for one in value], limit)
        return _cut_list(list(value), limit, depth)
    if isinstance(value, (bytes, bytearray)) and len(value) > 2 * limit:
        value = bytes(value[:limit]) + bytes(value[-limit:])
    return cut_text(safe_repr(value), limit)


def cut_text(text: str, limit: int) -> str:
    """Return both ends of *text*, and between them a line that says how much is missing."""
    if len(text) <= 2 * limit:
        return text
    size = len(text) - 2 * limit
    if not text.isascii():
        size = len(text[limit:-limit].encode("utf-8", "surrogatepass"))
    return f"{text[:limit]}\n{_note(size)}\n{text[-limit:]}"


def _note(size: int) -> str:
    return f"... {size} bytes left out ..."


def _cut_lines(lines: list[str], limit: int) -> list[str]:
    """Keep the first and the last of the lines, each cut as well."""
    if sum(map(len, lines)) <= 2 * limit:
        return lines
    head = _as_many(lines, limit)
    rest = lines[head:]
    tail = _as_many(rest[::-1], limit)
    missing = rest[: len(rest) - tail]
    note = []
    if missing:
        size = sum(len(line.encode("utf-8", "surrogatepass")) for line in missing)
        end = "\n" if lines[0].endswith("\n") else ""
        note = [_note(size) + end]
    kept = lines[:head] + note + (rest[-tail:] if tail else [])
    return [cut_text(line, limit) for line in kept]


def _as_many(lines: list[str], limit: int) -> int:
    """Return how many of the first *lines* are within *limit*: one at least, if there is one."""
    for number, line in enumerate(lines):
        limit -= len(line) + 1
        if limit < 0:
            return max(number, 1)
    return len(lines)


def _cut_list(entries: list[Any], limit: int, depth: int) -> list[Any]:
    most = max(limit // _SHARE, 8)
    if len(entries) <= most:
        return [cut(one, limit, depth + 1) for one in entries]
    half = most // 2
    kept = [cut(one, limit, depth + 1) for one in entries[:half] + entries[-half:]]
    text = f"... {len(entries) - most} of {len(entries)} left out ..."
    return [*kept[:half], *_noted(kept[0], text), *kept[half:]]


def _noted(like: Any, text: str) -> list[Any]:
    """Return *text* in the form of the entries of its list, if that form is known."""
    if isinstance(like, dict):  # of a traceback
        entry = {"type": "ReprEntryNative", "data": {"lines": [text + "\n"], "style": "native"}}
        return [entry] if like.keys() == entry.keys() else []
    if isinstance(like, list):  # sections and properties are pairs
        return [[text, ""]] if len(like) == 2 else []
    return [text]
