"""The checker that judges reports judges right."""

from __future__ import annotations

from helpers import json_schema

SMALL = {
    "type": "object",
    "required": ["a"],
    "additionalProperties": False,
    "properties": {
        "a": {"type": ["integer", "null"], "minimum": 0},
        "b": {"type": "array", "items": {"enum": ["x"]}},
        "c": {"$ref": "#/$defs/word"},
    },
    "$defs": {"word": {"type": "string"}},
}


def test_good_values() -> None:
    for value in ({"a": 1}, {"a": None}, {"a": 0, "b": ["x", "x"], "c": "w"}):
        assert json_schema.problems(value, SMALL) == []


def test_bad_values() -> None:
    bad: list[object] = [{}, {"a": -1}, {"a": True}, {"a": 1.5}, {"a": 1, "b": ["y"]}]
    bad += [{"a": 1, "c": 2}, {"a": 1, "d": 2}, [], None]
    for value in bad:
        assert json_schema.problems(value, SMALL), value


def test_documented_schema_is_read() -> None:
    assert json_schema.documented()["properties"]["schema"] == {"const": "nsisolate-report"}
    assert json_schema.problems({})
