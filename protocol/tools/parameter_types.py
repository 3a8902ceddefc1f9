"""The JSON types that a tool's schema allows each argument, for formats that write plain text."""

from collections.abc import Iterator, Mapping
from typing import Any

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
    properties = schema.get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return frozenset(_types(found, schema, _MAX_DEPTH))


def _types(schema: object, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth == 0:
        return
    given = schema.get("type")
    yield from (item for item in _listed(given) if isinstance(item, str))
    if given is None:
        constants = [schema["const"]] if "const" in schema else _listed(schema.get("enum"))
        for constant in constants:
            yield from JSON_TYPES.get(type(constant), ())
    for key in ("anyOf", "oneOf", "allOf"):
        for alternative in _listed(schema.get(key)):
            yield from _types(alternative, root, depth - 1)
    if isinstance(reference := schema.get("$ref"), str):
        yield from _types(_referred(reference, root), root, depth - 1)


def resolve(part: object, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema that a part of `root` stands for; None where its references lead nowhere."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(part, Mapping):
            return None
        reference = part.get("$ref")
        if not isinstance(reference, str):
            return part
        part = _referred(reference, root)
    return None


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    """What a reference inside the schema means, None for any other."""
    place: object = root
    for key in reference.removeprefix("#/").split("/"):
        place = place.get(key) if isinstance(place, Mapping) else None
    return place
