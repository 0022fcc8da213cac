"""Frames: whatever is sent arrives as plain data, and no bytes can do worse than `WireError`."""

from __future__ import annotations

import contextlib
import enum
import json
import random
import struct
from typing import Any

import pytest

from pytest_nsisolate import wire
from pytest_nsisolate.wire import Decoder, FrameTooLong, WireError, encode


def decode(data: bytes) -> list[tuple[str, Any]]:
    return list(Decoder().feed(data))


@pytest.mark.parametrize(
    "payload", [None, 0, 1.5, "", "\ud800 \0 ä", [], {"a": [1, {"b": None}]}, "x" * 100_000]
)
def test_round_trip(payload: object) -> None:
    assert decode(encode("kind", payload)) == [("kind", payload)]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no str")


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("payload", "arrives"),
    [
        ((1, {2}), [1, "{2}"]),
        ({"a": 1j, 3: b"x"}, {"a": "1j", "3": "b'x'"}),
        ([Hostile(), 1], ["<Hostile whose repr raised RuntimeError>", 1]),
        ([Text("x"), object], ["x", "<class 'object'>"]),
        (Number.ONE, 1),
    ],
)
def test_what_json_can_not_take(payload: object, arrives: object) -> None:
    """Each such part arrives as its repr, and its neighbours as they are."""
    assert decode(encode("kind", payload)) == [("kind", arrives)]


def test_a_payload_that_holds_itself() -> None:
    payload: list[object] = [1]
    payload.append(payload)
    ((_, arrived),) = decode(encode("kind", payload))
    assert arrived[0] == 1


def test_stream_in_pieces() -> None:
    """Frames may be cut anywhere, and several may come at once."""
    data = encode("a", 1) + encode("b", "two") + encode("c", [3])
    decoder = Decoder()
    for size in (1, 2, 3, 7, len(data)):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        found = [frame for piece in pieces for frame in decoder.feed(piece)]
        assert found == [("a", 1), ("b", "two"), ("c", [3])]
        assert not decoder.partial
    assert list(decoder.feed(data[:-1])) == [("a", 1), ("b", "two")]
    assert decoder.partial


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the sender, and by the receiver before it has taken any of it."""
    monkeypatch.setattr(wire, "MAX_HELD", 1000)
    encode("kind", "x" * 900)
    with pytest.raises(FrameTooLong, match="too large"):
        encode("kind", "x" * 1001)
    with pytest.raises(FrameTooLong, match="too large"):
        decode(struct.pack(">I", 1001))


@pytest.mark.parametrize(
    "text", ["", "x", "{}", "[]", "[1, 2]", '["kind"]', '["a", 1, 2]', "[" * 100_000, "\xff"]
)
def test_no_frame(text: str) -> None:
    data = text.encode("latin-1")
    with pytest.raises(WireError):
        decode(struct.pack(">I", len(data)) + data)


def test_frames_before_garbage_arrive() -> None:
    decoder = Decoder()
    frames = decoder.feed(encode("good", 1) + b"\0\0\0\1x")
    assert next(frames) == ("good", 1)
    with pytest.raises(WireError):
        next(frames)


def test_garbage() -> None:
    """Random bytes and damaged frames raise `WireError` or decode; nothing else happens."""
    dice = random.Random(1)
    good = encode("report", json.loads('{"a": [1, 2, "x"], "b": {"c": null}}'))
    for _ in range(3000):
        data = bytearray(good if dice.random() < 0.7 else dice.randbytes(dice.randrange(60)))
        for _ in range(dice.randrange(4)):
            if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
        with contextlib.suppress(WireError):
            assert all(isinstance(kind, str) for kind, _ in decode(bytes(data)))
