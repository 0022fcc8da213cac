"""What travels between the processes: length-prefixed JSON, and nothing that executes.

Guarantees: `encode` never raises for a value (what JSON can't take becomes its
``repr``); `Decoder` raises `WireError` and nothing else, whatever bytes come.
"""

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

#: The longest frame that is accepted, in bytes.
MAX_FRAME = 64 << 20
#: The longest message between runner, keeper and template, in bytes.
MAX_MESSAGE = 128 << 10

#: So many parts of a payload are looked at before it is encoded: it may hold itself.
_MANY_PARTS = 10_000

#: Of what needs not be looked into.
_SHORT = frozenset({float, int, bool, type(None)})

_LENGTH = struct.Struct(">I")
_dumps = json.JSONEncoder(separators=(",", ":")).encode
_raw_decode = json.JSONDecoder().raw_decode
#: JSON by itself, in ASCII, of values that are known to be plain.
dumps, loads = _dumps, json.loads


class WireError(Exception):
    """The bytes are no frame; the text says why."""


class FrameTooLong(WireError):
    """A frame is longer than `MAX_FRAME`."""

    def __init__(self, length: int) -> None:
        super().__init__(
            f"the report is too large: {length >> 20} MiB, at most {MAX_FRAME >> 20} MiB are taken"
        )


def safe_repr(value: object) -> str:
    """`repr` for a value whose ``__repr__`` may raise."""
    try:
        return repr(value)
    # A repr is foreign code; whatever it raises, the report goes on without it.
    except Exception as error:  # noqa: BLE001 -- as said above
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


def plain(value: object, depth: int = 0) -> Any:
    """*value* as JSON can take it: each part that it can't is its ``repr``."""
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


def _text_length(payload: object) -> int:
    """How long the strings in *payload* are together: at least so long is its JSON."""
    length, parts, todo = 0, 0, [payload]
    while todo and parts < _MANY_PARTS and length <= MAX_FRAME:
        part = todo.pop()
        parts += 1
        if type(part) in _SHORT:
            continue
        if isinstance(part, str):
            length += len(part)
        elif isinstance(part, dict):
            todo += part.values()
        elif isinstance(part, (list, tuple)):
            todo += part
    return length


def encode(kind: str, payload: object) -> bytes:
    """One frame.

    Raises:
        FrameTooLong: the frame would be longer than `MAX_FRAME`.
    """
    length = _text_length(payload)
    if length > MAX_FRAME:  # before hundreds of megabytes are made JSON to be thrown away
        raise FrameTooLong(length)
    try:
        text = _dumps([kind, payload])
    except (TypeError, ValueError, RecursionError):
        text = _dumps([kind, plain(payload)])
    if len(text) > MAX_FRAME:
        raise FrameTooLong(len(text))
    return _LENGTH.pack(len(text)) + text.encode("ascii")


def last_words(receive: "Callable[[], T]") -> "T":
    """What *receive* gets of a socket whose other end may have ended.

    If that left something unread, the kernel says so first (ECONNRESET), and only then gives
    what the other end had sent before.
    """
    try:
        return receive()
    except ConnectionResetError:
        return receive()


class Decoder:
    """Turns the bytes of one stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "Iterator[tuple[str, Any]]":
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
                if length > MAX_FRAME:
                    raise FrameTooLong(length)
                if len(buffer) - start - 4 < length:
                    break
                frame = self._parse(bytes(buffer[start + 4 : start + 4 + length]))
                start += 4 + length
                yield frame
        finally:
            del buffer[:start]

    @staticmethod
    def _parse(data: bytes) -> "tuple[str, Any]":
        try:
            text = data.decode("ascii")
            value, end = _raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the report stream holds something that is no JSON: {error}") from None
        if end != len(text):
            raise WireError("the report stream holds JSON and something behind it")
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
            raise WireError("the report stream holds JSON that is no frame")
        return value[0], value[1]

    @property
    def partial(self) -> bool:
        """Whether the stream stands inside a frame."""
        return bool(self._buffer)
