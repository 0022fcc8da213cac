"""Hold a JSON value against as much of JSON Schema as docs/report-schema.md uses."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .project import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = ROOT / "docs" / "report-schema.md"
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = frozenset(
    {"$schema", "$defs", "$ref", "type", "const", "enum", "minimum", "description"}
    | {"required", "properties", "additionalProperties", "items"}
)


def documented() -> dict[str, Any]:
    """The schema as the document shows it."""
    found = re.search(r"^```json\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    schema: dict[str, Any] = json.loads(found[1])
    return schema


def problems(value: object, schema: dict[str, Any] | None = None) -> list[str]:
    """Where a value breaks a schema, by default the documented one."""
    root = documented() if schema is None else schema
    return list(_problems(value, root, root, "$"))


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, TYPES[name])


def _problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str) -> Iterator[str]:
    assert schema.keys() <= KNOWN, f"{schema.keys() - KNOWN} is not checked here"
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        yield from _problems(value, target, root, at)
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_is(value, name) for name in types):
        yield f"{at}: {value!r} is not of type {types}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not one of {schema['enum']}"
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        yield f"{at}: {value!r} is below {schema['minimum']}"
    if isinstance(value, dict):
        yield from (f"{at}: no {name}" for name in schema.get("required", []) if name not in value)
        for name, one in value.items():
            other = schema.get("additionalProperties", {})
            inner = schema.get("properties", {}).get(name, other)
            if inner is False:
                yield f"{at}: unknown {name}"
            else:
                yield from _problems(one, inner, root, f"{at}.{name}")
    if isinstance(value, list) and "items" in schema:
        for number, one in enumerate(value):
            yield from _problems(one, schema["items"], root, f"{at}[{number}]")
