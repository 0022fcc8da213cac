"""Whatever bytes a test process sends: no crash, no hang, and no pass that was none.

Driven by hypothesis here, by coverage with ``tox -e fuzz``; the rules are in `wirefuzz`.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fuzz import wirefuzz
from pytest_nsisolate.core import wire
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.reports.brief import BRIEF
from pytest_nsisolate.reports.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Iterator

steady = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
ANYTHING = VALUES | st.binary() | st.complex_numbers() | st.sets(st.integers())
STATUSES = st.sampled_from([0, 3 << 8, 9, 11, 0x8B])


@pytest.fixture(scope="module")
def ground() -> Iterator[wirefuzz.Ground]:
    with wirefuzz.ground() as one:
        yield one


@steady
@given(st.text(), ANYTHING)
def test_round_trip(kind: str, payload: Any) -> None:
    """What is encoded is decoded to itself, or to its parts' reprs."""
    ((arrived, value),) = wire.Decoder().feed(wire.encode(kind, payload))
    assert arrived == kind
    assert json.dumps(value) == json.dumps(wire.plain(payload))


@steady
@given(st.text(), ANYTHING, st.sampled_from([1, 3, 8]))
def test_round_trip_beside_the_json(kind: str, payload: Any, long: int) -> None:
    """So it is for texts that travel in parts, however short is called long."""
    encoder, decoder = wire.Encoder(), wire.Decoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "LONG", long)
        for _ in range(2):
            frame, texts = encoder.encode(kind, payload)
            data = b"".join([*(part for one in texts for part in wire.parts(one)), frame])
            ((arrived, value),) = decoder.feed(data)
            assert arrived == kind
            assert json.dumps(value) == json.dumps(wire.plain(payload))
            assert encoder.told == decoder.held or kind in wire.PASSING


PARTS = st.tuples(st.sampled_from([0, 1 << 31, 3 << 30, 1 << 30]), st.binary(max_size=9)).map(
    lambda one: struct.pack(">I", one[0] | len(one[1])) + one[1]
)
PLACES = st.lists(st.tuples(st.integers(-1, 3), st.lists(st.integers(-1, 2) | st.text(max_size=2))))


@steady
@given(st.lists(PARTS, max_size=4), VALUES, PLACES, STATUSES)
def test_forged_texts(
    ground: wirefuzz.Ground, parts: list[bytes], payload: Any, places: Any, status: int
) -> None:
    """Parts of texts in any order, and a frame that says where they belong."""
    text = json.dumps(["report", payload, places]).encode()
    stream = b"".join(parts) + struct.pack(">I", len(text)) + text
    wirefuzz.check(ground, stream + ground.frames[-1], status)


def taken(pieces: list[bytes]) -> tuple[list[tuple[str, Any]], bool]:
    """The frames of a stream that comes in these pieces, and whether it broke off."""
    decoder, found = wire.Decoder(), []
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                found.append(frame)  # noqa: PERF402 -- one that is followed by garbage counts
    except wire.WireError:
        return found, True
    return found, False


@steady
@given(
    st.lists(st.binary(max_size=40) | ANYTHING.map(lambda one: wire.encode("a", one))), st.data()
)
def test_cut_anywhere(parts: list[bytes], data: st.DataObject) -> None:
    """How a stream is cut into reads makes no difference."""
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert repr(taken(pieces)) == repr(taken([stream]))


@steady
@given(st.binary(max_size=200), STATUSES)
def test_any_bytes(ground: wirefuzz.Ground, stream: bytes, status: int) -> None:
    wirefuzz.check(ground, stream, status)


@steady
@given(st.binary(min_size=4, max_size=40), STATUSES)
def test_damaged(ground: wirefuzz.Ground, changes: bytes, status: int) -> None:
    """The stream of a test that failed, damaged: cut off, changed, out of order, garbage in it."""
    wirefuzz.check(ground, wirefuzz.mutated(ground.frames, changes), status)


@pytest.mark.parametrize("index", range(4))
def test_lost_frame(ground: wirefuzz.Ground, index: int) -> None:
    """Found by the fuzzer: without the report that fails the others are those of a pass."""
    wirefuzz.check(ground, b"".join(ground.frames[:index] + ground.frames[index + 1 :]))


@steady
@given(st.lists(st.tuples(st.sampled_from(wirefuzz.KINDS), VALUES), max_size=6), STATUSES)
def test_forged_frames(ground: wirefuzz.Ground, forged: list[tuple[str, Any]], status: int) -> None:
    """Frames of every kind with whatever in them, and then what makes an end."""
    stream = b"".join(wire.encode(kind, payload) for kind, payload in forged)
    wirefuzz.check(ground, stream + ground.frames[-1], status)


@steady
@example(index=2, name="0000000", value="0", status=0)  # sections that are no pairs
@given(st.integers(0, 3), st.text(max_size=12), VALUES, STATUSES)
def test_forged_fields(
    ground: wirefuzz.Ground, index: int, name: str, value: Any, status: int
) -> None:
    """A field of a real report or ending replaced, or one more."""
    frames = list(ground.frames)
    kind, payload = json.loads(frames[index][4:])
    names = sorted(payload)
    payload[names[len(name) % len(names)] if len(name) % 3 else name] = value
    text = json.dumps([kind, payload]).encode()
    frames[index] = struct.pack(">I", len(text)) + text
    wirefuzz.check(ground, b"".join(frames), status)


@pytest.mark.parametrize(
    "where",
    [
        *(None, [], 5, ["/no/file.py"], ["/no/file.py", 5], ["a\0b", 5], ["\ud800", 1], ["", 1]),
        *([__file__, line] for line in (-1, 0, 1, 2**31 - 1, 2**31, "1", None)),
    ],
)
def test_forged_interrupt(ground: wirefuzz.Ground, where: object) -> None:
    """Wherever a test says that it was interrupted, pytest can show it."""
    replay = Replay(ground.item, log=False)
    replay.take("end", {"interrupt": where})
    with pytest.raises(KeyboardInterrupt) as raised:
        replay.finish(Outcome(Kind.COMPLETED))
    assert "KeyboardInterrupt" in str(raised.getrepr(funcargs=True))


def _setup(ground: wirefuzz.Ground) -> dict[str, Any]:
    """The brief report of the setup."""
    _, payload = json.loads(ground.frames[0][4:])
    assert BRIEF in payload
    return dict(payload)


def test_brief_report(ground: wirefuzz.Ground) -> None:
    """It is a report of its own, as the whole one would be."""
    call = {"when": "call", "duration": 2.5, "sections": [["a", "b"]]}
    replay = Replay(ground.item, log=False)
    replay.take("report", _setup(ground))
    (first,) = replay.reports
    first.sections.append(("a plugin's", "text"))
    vars(first)["keywords"]["a plugin's"] = 1
    replay.take("report", {**_setup(ground), BRIEF: None, **call})
    _, report = replay.reports
    assert (report.when, report.duration, report.sections) == ("call", 2.5, [("a", "b")])
    assert first.sections == [("a plugin's", "text")]
    expected = Replay(ground.item, log=False)
    expected.take("report", {**ground.whole[0], **call})
    (other,) = expected.reports
    # That of pytest keeps what it was told to be, as an attribute.
    assert vars(report) == {name: one for name, one in vars(other).items() if name[0] != "$"}


@pytest.mark.parametrize(
    "forged",
    [
        {"outcome": "passed"},
        {"nodeid": "test_it.py::test_other"},
        {"when": "nap"},
        {"sections": [["a"]]},
        {"sections": [["a", 1]]},
        {"user_properties": [1]},
        {"stop": "never"},
    ],
    ids=str,
)
def test_forged_brief_report(ground: wirefuzz.Ground, forged: dict[str, Any]) -> None:
    """One that says what none may say is a stream that makes no sense, and no pass."""
    for before in ([], [_setup(ground)]):
        replay = Replay(ground.item, log=False)
        for report in [*before, {**_setup(ground), "when": "call", **forged}]:
            replay.take("report", report)
        replay.take("end", {"failed": False})
        replay.finish(Outcome(Kind.COMPLETED))
        assert [report.outcome for report in replay.reports].count("failed") == 1, forged
