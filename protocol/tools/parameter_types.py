"""The JSON types that a tool's schema allows each argument, for formats that write plain text."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

_MAX_DEPTH = 8  # of references and alternatives; deeper ones, as those in a circle, say nothing

JSON_TYPES: Mapping[type, frozenset[str]] = {
    str: frozenset({"string"}),
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    type(None): frozenset({"null"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
}


def parameter_types(schema: Mapping[str, Any], name: str) -> frozenset[str]:
    """Types of the argument `name`; empty where the schema does not say."""
    whole = resolve(schema, schema) or {}
    properties = whole.get("properties")
    named = properties if isinstance(properties, Mapping) else {}
    return types_of(named.get(name, whole.get("additionalProperties")), schema)


def types_of(part: object, root: Mapping[str, Any]) -> frozenset[str]:
    """Types that a part of `root` allows; empty where it does not say."""
    return frozenset(_types(part, root, _MAX_DEPTH, set()))


def _types(schema: object, root: Mapping[str, Any], depth: int, seen: set[int]) -> Iterator[str]:
    """`seen`: ids of the schemas that were asked, or alternatives in a circle take for ever."""
    if not isinstance(schema, Mapping) or depth == 0 or id(schema) in seen:
        return
    seen.add(id(schema))
    given = schema.get("type")
    yield from (item for item in _listed(given) if isinstance(item, str))
    if given is None:
        constants = [schema["const"]] if "const" in schema else _listed(schema.get("enum"))
        for constant in constants:
            yield from JSON_TYPES.get(type(constant), ())
    for key in ("anyOf", "oneOf", "allOf"):
        for alternative in _listed(schema.get(key)):
            yield from _types(alternative, root, depth - 1, seen)
    if isinstance(reference := schema.get("$ref"), str):
        yield from _types(referred(reference, root), root, depth - 1, seen)


def resolve(part: object, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema that a part of `root` stands for; None where its references lead nowhere."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(part, Mapping):
            return None
        reference = part.get("$ref")
        if not isinstance(reference, str):
            return part
        part = referred(reference, root)
    return None


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def referred(reference: str, root: Mapping[str, Any]) -> object:
    """What a reference inside the schema means, None for one that leads nowhere or elsewhere."""
    place: object = root
    for step in reference.split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(place, list):
            place = place[int(key)] if key.isdecimal() and int(key) < len(place) else None
        else:
            place = place.get(key) if isinstance(place, Mapping) else None
    return place if reference.startswith("#") else None
