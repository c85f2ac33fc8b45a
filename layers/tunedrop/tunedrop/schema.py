"""Holds a JSON value against a JSON Schema, with messages for people.

The part of JSON Schema (2020-12) that ``job.schema.json`` uses. Every node of that schema has a ``description`` of what
belongs there; that is the remedy. A key whose value is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}

type Schema = dict[str, Any]


class Mismatch(NamedTuple):
    """What does not fit: ``path`` is where, ``keyword`` is the schema's word that it offends."""

    path: str
    keyword: str
    message: str


def mismatches(value: Any, schema: Schema, root: Schema, path: str = "") -> Iterator[Mismatch]:
    """What of ``value`` does not fit ``schema``; ``root`` is the schema that ``$ref`` points into."""
    schema = _resolve(schema, root)
    if "anyOf" in schema:
        schema = _resolve(_nearest(value, schema, root), root) | {"description": schema["description"]}
    if keyword := _offended(value, schema):
        yield Mismatch(path, keyword, f"it is {schema['description']}")
    elif isinstance(value, dict):
        yield from _members(value, schema, root, path)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from mismatches(item, schema.get("items", {}), root, f"{path}[{number}]")


def _resolve(schema: Schema, root: Schema) -> Schema:
    for step in schema.get("$ref", "").removeprefix("#/").split("/") if "$ref" in schema else ():
        root = root[step]
        schema = root
    return schema


def _nearest(value: Any, schema: Schema, root: Schema) -> Schema:
    """The alternative that the value was meant for: one that it fits, else one of its type, else the first."""
    alternatives = [_resolve(alternative, root) for alternative in schema["anyOf"]]
    fitting = (a for a in alternatives if not _offended(value, a))
    same_type = (a for a in alternatives if "type" in a and _is(value, a["type"]))
    return next(fitting, None) or next(same_type, alternatives[0])


def _offended(value: Any, schema: Schema) -> str | None:
    """The keyword that the value itself offends, whatever is inside it."""
    if "type" in schema and not _is(value, schema["type"]):
        return "type"
    if "enum" in schema and value not in schema["enum"]:
        return "enum" if isinstance(value, str) else "type"
    bounds: dict[str, float] = {}
    if isinstance(value, str):
        bounds = {"minLength": len(value), "maxLength": len(value)}
    elif isinstance(value, dict):
        bounds = {"maxProperties": len(value)}
    elif isinstance(value, int | float):
        bounds = dict.fromkeys(("minimum", "exclusiveMinimum", "maximum"), value)
    for keyword, actual in bounds.items():
        if keyword in schema and not _within(actual, keyword, schema[keyword]):
            return keyword
    return None


def _within(actual: float, keyword: str, bound: float) -> bool:
    if keyword == "exclusiveMinimum":
        return actual > bound
    return actual >= bound if keyword.startswith("min") else actual <= bound


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, float) and name == "integer":
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _members(value: dict[str, Any], schema: Schema, root: Schema, path: str) -> Iterator[Mismatch]:
    known = schema.get("properties", {})
    further = schema.get("additionalProperties", True)
    for key, member in value.items():
        here = f"{path}.{key}" if path else key
        names = schema.get("propertyNames")
        if names and _offended(key, names):
            yield Mismatch(path, "propertyNames", f"a key of it is {names['description']}")
        elif member is None:
            continue
        elif key in known:
            yield from mismatches(member, known[key], root, here)
        elif further is False:
            yield Mismatch(here, "additionalProperties", _unknown(key, known))
        elif further is not True:
            yield from mismatches(member, further, root, here)
    for key in schema.get("required", ()):
        if value.get(key) is None:
            yield Mismatch(f"{path}.{key}", "required", "add it: " + _resolve(known[key], root)["description"])


def _unknown(key: str, known: Schema) -> str:
    names = [name for name in known if not name.startswith("$")]
    from difflib import get_close_matches  # as rare as an unknown key

    close = get_close_matches(key, names, n=1, cutoff=0.6)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known are {', '.join(sorted(names))}"
