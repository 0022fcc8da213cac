"""Encode and decode what the processes send: length-prefixed JSON, and nothing that executes.

A frame is a length and JSON: ``[kind, payload]``. Long texts go before it, as they are, in parts
of bounded length; the frame then is ``[kind, payload, places]`` and says where each text
belongs. So neither side makes JSON of hundreds of megabytes, and what several reports of a test
have in common, such as its captured output, travels once.

Guarantees: `encode` never raises for a value (what JSON can't take becomes its
``repr``); `Decoder` raises `WireError` and nothing else, whatever bytes come, and holds no more
than `MAX_HELD` of one test.
"""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

#: What the frames of one test may weigh in the runner (see `weight`), in bytes. Pytest keeps the
#: reports of all tests to the end of the session, so that is for each test to weigh: a failure
#: whose message has a hundred megabytes fits, and a test that floods its stream ends before this
#: machine's memory does.
MAX_HELD = 256 << 20
#: Of that, what reports may take before they are cut: the rest is for those that have been.
MAX_REPORTS = MAX_HELD // 8 * 7
#: The longest part of a text, in bytes, and what is sent at once, in characters.
MAX_PART, PART = 4 << 20, 1 << 20
#: Texts from here on travel beside the JSON, in characters.
LONG = 1 << 16
#: The longest message between runner, keeper and template, in bytes.
MAX_MESSAGE = 128 << 10
#: Kinds of frames that are over once they have been handed on. All others stay, in reports.
PASSING = frozenset({"write", "output"})

#: So many parts of a payload are looked at before it is encoded: it may hold itself.
_MANY_PARTS = 1_000_000
#: How deep a payload may be nested to be looked into.
_DEEP = 50
#: What the smallest frame, and a list or dict in it, take in memory, in bytes, at least.
_FRAME_WEIGHT, _PART_WEIGHT = 1024, 24
#: JSON of this many bytes is worth an exact count of what is in it.
_MUCH = 1 << 20

#: Of what needs not be looked into.
_SHORT = frozenset({float, int, bool, type(None)})

_LENGTH = struct.Struct(">I")
#: In the place of a length: a part of a text, and its last one.
_TEXT, _LAST = 1 << 31, 1 << 30
_dumps = json.JSONEncoder(separators=(",", ":")).encode
_raw_decode = json.JSONDecoder().raw_decode
_strings = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
#: JSON by itself, in ASCII, of values that are known to be plain.
dumps, loads = _dumps, json.loads


class WireError(Exception):
    """The bytes are no frame; the text says why."""


class FrameTooLong(WireError):
    """The frames of one test weigh more than `MAX_HELD`."""

    def __init__(self) -> None:
        super().__init__(
            f"its reports are too large: at most {MAX_HELD >> 20} MiB are taken of one test"
        )


def safe_repr(value: object) -> str:
    """Return the `repr` of a value whose ``__repr__`` may raise."""
    try:
        return repr(value)
    # A repr is foreign code; whatever it raises, the report goes on without it.
    except Exception as error:  # noqa: BLE001 -- as said above
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


def plain(value: object, depth: int = 0) -> Any:
    """Convert *value* for JSON: each part that JSON can't hold becomes its ``repr``."""
    if value is None or isinstance(value, (bool, int, float)):
        # A subclass (an enum, numpy's float64) would be written by its own rules.
        for kind in (bool, int, float):
            if isinstance(value, kind):
                return kind(value)
        return None
    if isinstance(value, str):
        return str.__str__(value)
    if depth < 50:
        if isinstance(value, (list, tuple)):
            return [plain(part, depth + 1) for part in value]
        if isinstance(value, dict):
            return {
                key if isinstance(key, str) else safe_repr(key): plain(part, depth + 1)
                for key, part in value.items()
            }
    return safe_repr(value)


def weight(data: bytes) -> int:
    """Estimate the memory that a frame's JSON takes: its length, or more if it is all brackets."""
    parts = data.count(b",") + data.count(b"[") + data.count(b"{")
    if parts * _PART_WEIGHT > len(data) > _MUCH:
        bare = _strings.sub(b"", data)
        parts = bare.count(b",") + bare.count(b"[") + bare.count(b"{")
    return _FRAME_WEIGHT + max(len(data), parts * _PART_WEIGHT)


def weight_passing(payload: object) -> int:
    """Estimate the memory that a frame of the kinds `PASSING` takes, as `weight` does."""
    text = payload[1] if isinstance(payload, list) and len(payload) == 2 else payload
    return _FRAME_WEIGHT + (4 * len(text) if isinstance(text, str) else 0)


def survey(payload: object) -> tuple[int, list[str]]:
    """Return the total length of the strings in *payload*, and the long ones, each once."""
    length, parts, todo = 0, 0, [payload]
    found: dict[int, str] = {}
    while todo and parts < _MANY_PARTS:
        part = todo.pop()
        parts += 1
        if type(part) in _SHORT:
            continue
        if isinstance(part, str):
            if len(part) < LONG or type(part) is not str:
                length += len(part)
            elif id(part) not in found:
                found[id(part)] = part
                length += len(part)
        elif isinstance(part, dict):
            todo += part.values()
        elif isinstance(part, (list, tuple)):
            todo += part
    return length, list(found.values())


def _json(frame: list[Any]) -> bytes:
    try:
        text = _dumps(frame)
    except (TypeError, ValueError, RecursionError):
        frame[1] = plain(frame[1])
        text = _dumps(frame)
    return text.encode("ascii")


def encode(kind: str, payload: object) -> bytes:
    """Encode one frame, all of it in JSON.

    Raises:
        FrameTooLong: it weighs more than `MAX_HELD`.
    """
    if survey(payload)[0] > MAX_HELD:  # before it is made JSON to be thrown away
        raise FrameTooLong
    data = _json([kind, payload])
    if weight(data) > MAX_HELD:
        raise FrameTooLong
    return _LENGTH.pack(len(data)) + data


def _size(text: str) -> int:
    """Return the length of an encoded text, in bytes."""
    if text.isascii():
        return len(text)
    return sum(
        len(text[at : at + PART].encode("utf-8", "surrogatepass"))
        for at in range(0, len(text), PART)
    )


class Encoder:
    """Turns what one process has to tell into frames, and knows how much of that was told.

    Attributes:
        told: what the frames of the test that is on weigh so far.
    """

    def __init__(self) -> None:
        self.told = 0
        self._texts: dict[int, tuple[int, str]] = {}  # by identity: their numbers

    def forget(self) -> None:
        """Forget the frames of the last test, as the next one begins."""
        self.told = 0
        self._texts.clear()

    def encode(self, kind: str, payload: object, most: int = MAX_HELD) -> tuple[bytes, list[str]]:
        """Encode one frame; return it and the texts that are to be sent before it (`parts`).

        Args:
            most: what all frames of the test may weigh together then.

        Raises:
            FrameTooLong: they would weigh more. Nothing of this one counts then.
        """
        length, long = survey(payload)
        new = [text for text in long if id(text) not in self._texts] if long else long
        if length > LONG:
            known = sum(map(len, long)) - sum(map(len, new))
            if self.told + length - known > most:
                raise FrameTooLong
        frame: list[Any] = [kind, payload]
        numbers: dict[int, int] = {}
        if long:
            numbers = {key: number for key, (number, _) in self._texts.items()}
            numbers |= {id(text): number for number, text in enumerate(new, len(numbers))}
            places: list[Any] = []
            frame = [kind, _lifted(payload, numbers, [], places), places]
        data = _json(frame)
        weighs = 0
        if kind not in PASSING:
            weighs = weight(data) + sum(_FRAME_WEIGHT + _size(text) for text in new)
            if self.told + weighs > most:
                raise FrameTooLong
        self.told += weighs
        for text in new:
            self._texts[id(text)] = (numbers[id(text)], text)
        return _LENGTH.pack(len(data)) + data, new


def _lifted(value: Any, numbers: dict[int, int], path: list[str | int], places: list[Any]) -> Any:
    """Copy *value* without its long texts; add their numbers and places to *places*."""
    inner: Iterable[tuple[Any, Any]] = ()
    copy: Any = value
    if isinstance(value, str):
        if id(value) in numbers:
            places.append([numbers[id(value)], list(path)])
            return None
    elif len(path) < _DEEP:
        if isinstance(value, (list, tuple)):
            copy, inner = list(value), enumerate(value)
        elif isinstance(value, dict):
            copy, inner = dict(value), value.items()
    for name, one in inner:
        # Most are short, and there may be many.
        if type(one) in _SHORT or (isinstance(one, str) and len(one) < LONG):
            continue
        if isinstance(copy, list) or type(name) is str:  # JSON makes others a text
            path.append(name)
            copy[name] = _lifted(one, numbers, path, places)
            path.pop()
    return copy


def parts(text: str) -> Iterator[bytes]:
    """Encode a long text in parts."""
    for at in range(0, len(text), PART):
        data = text[at : at + PART].encode("utf-8", "surrogatepass")
        last = _LAST if at + PART >= len(text) else 0
        yield _LENGTH.pack(_TEXT | last | len(data)) + data


def last_words(receive: Callable[[], T]) -> T:
    """Receive from a socket whose other end may have ended.

    If that left something unread, the kernel says so first (ECONNRESET), and only then gives
    what the other end had sent before.
    """
    try:
        return receive()
    except ConnectionResetError:
        return receive()


class Decoder:
    """Turns the bytes of one stream into frames.

    Attributes:
        held: what the frames of the test that is on weigh so far, less what has been let go.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._text: bytearray | None = None  # of which parts are still to come
        self._texts: list[bytearray | str] = []
        self.held = 0

    def forget(self) -> None:
        """Forget the frames of the last test, as the next one begins."""
        self.held = 0
        self._texts.clear()

    def let_go(self, kind: str, payload: object) -> None:
        """Stop counting a frame of the current test that has been handed on."""
        if kind in PASSING:
            self.held -= weight_passing(payload)

    def feed(self, data: bytes) -> Iterator[tuple[str, Any]]:
        """Take *data*, give the frames that are complete by now.

        Raises:
            WireError: the stream holds something that is no frame.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= 4:
                (length,) = _LENGTH.unpack_from(buffer, start)
                text, last = length & _TEXT, length & _LAST
                length &= _LAST - 1
                if (not 0 < length <= MAX_PART) if text else last:
                    raise WireError("the report stream holds a length that is none")
                if self.held + length > MAX_HELD:
                    raise FrameTooLong
                end = start + 4 + length
                if len(buffer) < end:
                    break
                if text:
                    self._add(memoryview(buffer)[start + 4 : end], last=bool(last))
                    start = end
                    continue
                found = bytes(memoryview(buffer)[start + 4 : end])
                start = end
                if length > _MUCH:  # or it would be there twice while it is read
                    del buffer[:start]
                    start = 0
                yield self._frame(found)
        finally:
            del buffer[:start]

    def _add(self, part: memoryview, *, last: bool) -> None:
        with part:
            self.held += len(part)
            if self._text is None:
                self._text = bytearray()
            self._text += part
        if last:
            self.held += _FRAME_WEIGHT
            self._texts.append(self._text)
            self._text = None

    def _frame(self, data: bytes) -> tuple[str, Any]:
        if self._text is not None:
            raise WireError("the report stream breaks off a text")
        weighs = weight(data)
        if self.held + weighs > MAX_HELD:
            raise FrameTooLong
        kind, payload, places = self._parse(data)
        for place in places:
            payload = self._placed(payload, place)
        self.held += weight_passing(payload) if kind in PASSING else weighs
        return kind, payload

    @staticmethod
    def _parse(data: bytes) -> tuple[str, Any, list[Any]]:
        try:
            text = data.decode("ascii")
            value, end = _raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the report stream holds something that is no JSON: {error}") from None
        if end != len(text):
            raise WireError("the report stream holds JSON and something behind it")
        if isinstance(value, list):
            if len(value) == 2 and isinstance(value[0], str):
                return value[0], value[1], []
            if len(value) == 3 and isinstance(value[0], str) and isinstance(value[2], list):
                return value[0], value[1], value[2]
        raise WireError("the report stream holds JSON that is no frame")

    def _placed(self, payload: Any, place: Any) -> Any:
        """Put a text where it belongs in *payload*, and return that."""
        try:
            number, path = place
            text = self._text_of(number)
            if not path:
                return text
            *outer, name = path
            inner = payload
            for step in outer:
                inner = inner[step]
            inner[name] = text
        except (TypeError, ValueError, LookupError):
            raise WireError("the report stream holds a text that belongs nowhere") from None
        return payload

    def _text_of(self, number: int) -> str:
        text = self._texts[number]
        if not isinstance(text, str):
            text = self._texts[number] = text.decode("utf-8", "surrogatepass")
        return text

    @property
    def partial(self) -> bool:
        """Whether the stream stands inside a frame."""
        return bool(self._buffer) or self._text is not None
