"""Frames: whatever is sent arrives as plain data, and no bytes can do worse than `WireError`."""

from __future__ import annotations

import contextlib
import enum
import json
import random
import struct
from typing import Any

import pytest

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.wire import Decoder, FrameTooLong, WireError, encode


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
    monkeypatch.setattr(wire, "MAX_HELD", 3000)
    encode("kind", "x" * 900)
    with pytest.raises(FrameTooLong, match="too large"):
        encode("kind", "x" * 3001)
    with pytest.raises(FrameTooLong, match="too large"):
        decode(struct.pack(">I", 3001))


def sent(encoder: wire.Encoder, kind: str, payload: object) -> bytes:
    """All bytes of a frame, as they travel."""
    frame, texts = encoder.encode(kind, payload)
    return b"".join([*(part for text in texts for part in wire.parts(text)), frame])


LONG_TEXTS = ["x" * wire.LONG, "\xe4" * 3_000_000, "\u2713\U0001f600\ud800" * 700_000]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=["ascii", "latin", "any"])
@pytest.mark.parametrize("form", ["{}", "[{}]", "[1, {}, [{}, 'short']]", "{{'a': [({}, 'b')]}}"])
def test_long_texts_travel_beside_the_json(text: str, form: str) -> None:
    payload = eval(form.format("text", "text"))
    data = sent(wire.Encoder(), "kind", payload)
    ((kind, arrived),) = decode(data)
    assert (kind, arrived) == ("kind", json.loads(json.dumps(payload)))
    assert len(data) < len(text.encode("utf-8", "surrogatepass")) + 1000  # it travels once
    pieces = [data[at : at + 60_000] for at in range(0, len(data), 60_000)]
    decoder = Decoder()
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == [(kind, arrived)]


def test_what_frames_have_in_common_travels_once() -> None:
    """As long as the test is the same one; the runner has it once, too."""
    text, encoder, decoder = "x" * 1_000_000, wire.Encoder(), Decoder()
    first, second = sent(encoder, "a", [text]), sent(encoder, "b", {"c": text, "d": [text]})
    assert len(second) < 1000
    (a,), (b,) = decoder.feed(first), decoder.feed(second)
    assert (a, b) == (("a", [text]), ("b", {"c": text, "d": [text]}))
    assert b[1]["c"] is b[1]["d"][0] is a[1][0]
    encoder.forget()
    decoder.forget()
    (c,) = decoder.feed(sent(encoder, "c", text))
    assert c == ("c", text)


def test_both_sides_weigh_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sender takes for small enough is so for the receiver."""
    monkeypatch.setattr(wire, "MAX_HELD", 1_000_000)
    dice, encoder, decoder = random.Random(1), wire.Encoder(), Decoder()
    with pytest.raises(FrameTooLong):  # noqa: PT012 -- at some time
        while True:
            payload = ["\u2713" * dice.randrange(100_000), [[]] * dice.randrange(1000)]
            frame, texts = encoder.encode("kind", payload, most=wire.MAX_HELD)
            data = b"".join([*(part for text in texts for part in wire.parts(text)), frame])
            assert list(decoder.feed(data)) == [("kind", payload)]
            assert encoder.told == decoder.held


def test_keys_that_are_no_texts() -> None:
    text = "x" * wire.LONG
    data = sent(wire.Encoder(), "kind", {1: [text], "a": text})
    assert decode(data) == [("kind", {"1": [text], "a": text})]
    data = sent(wire.Encoder(), "kind", {1j: [text], "a": [text, 2j]})
    assert decode(data) == [("kind", {"1j": [text], "a": [text, "2j"]})]


@pytest.mark.parametrize(
    "frame",
    [
        '["a",null,[[0,[]]]]',
        '["a",null,[[0]]]',
        '["a",[],[[0,[0]]]]',
        '["a",null,[["0",[]]]]',
        '["a",null,[7]]',
        '["a",null,{}]',
        '["a","b",[[0,[0]]]]',
    ],
)
def test_texts_that_belong_nowhere(frame: str) -> None:
    data = struct.pack(">I", len(frame)) + frame.encode()
    with pytest.raises(WireError):
        decode(data)
    if frame != '["a",null,[[0,[]]]]':
        with pytest.raises(WireError):
            decode(struct.pack(">I", 3 << 30 | 1) + b"x" + data)


@pytest.mark.parametrize("length", [1 << 31, 3 << 30, 1 << 30, 1 << 31 | (4 << 20) + 1])
def test_lengths_that_are_none(length: int) -> None:
    with pytest.raises(WireError):
        decode(struct.pack(">I", length))


def test_a_text_that_breaks_off() -> None:
    with pytest.raises(WireError, match="breaks off"):
        decode(struct.pack(">I", 1 << 31 | 1) + b"x" + encode("a", 1))
    decoder = Decoder()
    assert not list(decoder.feed(struct.pack(">I", 1 << 31 | 1) + b"x"))
    assert decoder.partial


def test_what_is_all_brackets_weighs_what_it_takes() -> None:
    """Not so where they stand in texts."""
    brackets, texts = json.dumps([[]] * 500_000).encode(), json.dumps(["[]," * 500_000]).encode()
    assert wire.weight(brackets) > 10 * len(brackets)
    assert wire.weight(texts) < 1.1 * len(texts)


def test_what_passes_weighs_nothing_once_it_is_handed_on() -> None:
    decoder = Decoder()
    for payload in ("x" * 1000, ["stdout", "y" * 1000], 5, None, [1, 2]):
        (frame,) = decoder.feed(encode("write", payload))
        assert decoder.held > 0
        decoder.let_go(*frame)
        assert decoder.held == 0


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
