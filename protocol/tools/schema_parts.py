"""Parts of a schema by themselves: of one argument, for formats that write each on its own."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocol.tools.parameter_types import referred

_DEFINITIONS = ("$defs", "definitions")
_MAX_DEPTH = 8  # of references and unions inside one another
_MAX_ALTERNATIVES = 64  # a few of them inside one another soon are millions
_DATA = ("const", "enum")  # what is in them is no schema


class Inseparable(Exception):
    """A schema that cannot be taken apart."""


def standalone(part: object, root: Mapping[str, Any]) -> object:
    """`part` of `root` as a schema in which all references lead somewhere."""
    if not isinstance(part, Mapping) or not any(True for _ in _references(part)):
        return part
    prefixes = tuple(f"#/{key}/" for key in _DEFINITIONS)
    if all(reference.startswith(prefixes) for reference in _references(root)):
        return {**{key: root[key] for key in _DEFINITIONS if key in root}, **part}
    moved = _moved(part)
    assert isinstance(moved, dict)
    return {"$defs": {"root": _moved(root)}, **moved}


def _references(part: object) -> Iterator[str]:
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in _DATA:
                yield from _references(value)
    elif isinstance(part, list):
        for item in part:
            yield from _references(item)


def _moved(part: object) -> object:
    """The same with the references that it has where its root is a definition."""
    if isinstance(part, list):
        return [_moved(item) for item in part]
    if not isinstance(part, Mapping):
        return part
    moved = {key: value if key in _DATA else _moved(value) for key, value in part.items()}
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/root{reference[1:]}"
    return moved


def alternatives(part: object, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Schemas without references and unions, one of which a value has to satisfy.

    Those of `oneOf` count as apart. Raises Inseparable.
    """
    return _taken_apart(part, root, _MAX_DEPTH)


def _taken_apart(part: object, root: Mapping[str, Any], depth: int) -> list[Mapping[str, Any]]:
    found = list(itertools.islice(_alternatives(part, root, depth), _MAX_ALTERNATIVES + 1))
    if len(found) > _MAX_ALTERNATIVES:
        raise Inseparable
    return found


def _alternatives(part: object, root: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    if isinstance(part, bool):
        yield from [{}] if part else []
        return
    if not isinstance(part, Mapping) or depth == 0:
        raise Inseparable
    groups: list[Sequence[object]] = []
    if "$ref" in part:
        groups.append([referred(str(part["$ref"]), root)])
    for key in ("anyOf", "oneOf"):
        if key in part:
            groups.append(_listed(part[key]))
    groups += [[item] for item in _listed(part.get("allOf", []))]
    combined = ("$ref", "anyOf", "oneOf", "allOf", *_DEFINITIONS)
    own = {key: value for key, value in part.items() if key not in combined}
    for choice in itertools.product(*groups):
        inner = [_taken_apart(item, root, depth - 1) for item in choice]
        for schemas in itertools.product([own], *inner):
            if (both := _merged(schemas)) is not None:
                yield both


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Inseparable
    return value


def _merged(schemas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """What satisfies all of them; None for nothing."""
    merged: dict[str, Any] = {}
    for schema in schemas:
        for key, value in schema.items():
            if key == "type" and key in merged:
                types = [kind for kind in types_in(merged) if kind in types_in(schema)]
                if not types:
                    return None
                merged[key] = types
            elif merged.setdefault(key, value) != value:
                raise Inseparable
    return merged


def are_apart(schemas: object, root: Mapping[str, Any]) -> bool:
    """Whether no value satisfies two of them, as far as types or constants tell."""
    try:
        each = [alternatives(schema, root) for schema in _listed(schemas)]
    except Inseparable:
        return False
    return len(each) <= _MAX_ALTERNATIVES and all(
        _are_two_apart(one, other)
        for these, those in itertools.combinations(each, 2)
        for one, other in itertools.product(these, those)
    )


def _are_two_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    types = {"number" if kind == "integer" else kind for kind in types_in(one)}
    if types.isdisjoint("number" if kind == "integer" else kind for kind in types_in(other)):
        return True
    if (first := choices_in(one)) is not None and (second := choices_in(other)) is not None:
        return not any(choice in second for choice in first)
    if not set(types_in(one)) == set(types_in(other)) == {"object"}:
        return False
    return any(
        name in one.get("required", ())
        and name in other.get("required", ())
        and isinstance(theirs := other.get("properties", {}).get(name), Mapping)
        and isinstance(part, Mapping)
        and choices_in(part) is not None
        and choices_in(theirs) is not None
        and _are_two_apart(part, theirs)
        for name, part in one.get("properties", {}).items()
    )


def choices_in(schema: Mapping[str, Any]) -> list[object] | None:
    """The values that it lists, None if it lists none."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    return choices if isinstance(choices, list) else None


def types_in(schema: Mapping[str, Any]) -> list[str]:
    """What `type` says in it, all types where it says nothing."""
    given = schema.get("type", ["string", *NO_STRINGS])
    if not isinstance(given, list):
        return [given] if isinstance(given, str) else []
    return [kind for kind in given if isinstance(kind, str)]


NO_STRINGS = ("null", "boolean", "number", "integer", "array", "object")
