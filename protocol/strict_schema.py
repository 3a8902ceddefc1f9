"""What OpenAI asks of a JSON schema with `strict: true`, and its words for what is wrong.

Source: the guide "Structured model outputs", section "Supported schemas". The words are convention,
not contract: clients rely on the code invalid_json_schema, and people on the place.
"""

from collections.abc import Iterator, Mapping

from protocol.validation import MAX_QUOTED

MAX_DEPTH = 10
MAX_PROPERTIES = 5000
MAX_ENUM_VALUES = 1000

_NOT_PERMITTED = (
    *("allOf", "oneOf", "not", "if", "then", "else"),
    *("dependentRequired", "dependentSchemas", "patternProperties"),
)
_SAYS_WHAT = ("type", "$ref", "anyOf", "enum", "const")

_REQUIRED = (
    "'required' is required to be supplied and to be an array including every key in properties."
)

Path = tuple[str, ...]


def strict_problem(schema: Mapping[str, object]) -> str | None:
    """One sentence with the place of the first problem, None if there is none."""
    kind = schema.get("type")
    if kind != "object" and "$ref" not in schema:
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'."
    num_properties = num_enum_values = 0
    waiting: list[tuple[Path, Mapping[str, object], int]] = [((), schema, 1)]
    while waiting:
        path, part, depth = waiting.pop()
        problem = _problem_of(part, depth)
        if problem is not None:
            return f"In context={path!r}, {problem}"
        num_properties += len(_mapping(part.get("properties")))
        enum = part.get("enum")
        num_enum_values += len(enum) if isinstance(enum, list) else 0
        if num_properties > MAX_PROPERTIES or num_enum_values > MAX_ENUM_VALUES:
            return (
                f"In context={path!r}, the schema has more than {MAX_PROPERTIES} properties or "
                f"{MAX_ENUM_VALUES} enum values."
            )
        waiting += reversed([(path + step, child, depth + 1) for step, child in _children(part)])
    return None


def _problem_of(part: Mapping[str, object], depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"the schema is nested deeper than {MAX_DEPTH} levels."
    for keyword in _NOT_PERMITTED:
        if keyword in part:
            return f"'{keyword}' is not permitted."
    if not any(key in part for key in _SAYS_WHAT):
        return "schema must have a 'type' key."
    kind = part.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in part:
        return _object_problem(part)
    if kind == "array" and not isinstance(part.get("items"), Mapping):
        return "array schema missing items."
    return None


def _object_problem(part: Mapping[str, object]) -> str | None:
    if part.get("additionalProperties") is not False:
        return "'additionalProperties' is required to be supplied and to be false."
    properties, required = _mapping(part.get("properties")), part.get("required")
    if not isinstance(required, list):
        return _REQUIRED if properties else None
    for name in properties:
        if name not in required:
            return f"{_REQUIRED} Missing '{_short(name)}'."
    for name in required:
        if not isinstance(name, str) or name not in properties:
            return f"{_REQUIRED} Extra required key '{_short(name)}' supplied."
    return None


def _children(part: Mapping[str, object]) -> Iterator[tuple[Path, Mapping[str, object]]]:
    for key in ("properties", "$defs", "definitions"):
        for name, child in _mapping(part.get(key)).items():
            if isinstance(child, Mapping):
                yield (key, name), child
    items = part.get("items")
    if isinstance(items, Mapping):
        yield ("items",), items
    options = part.get("anyOf")
    for i, child in enumerate(options if isinstance(options, list) else ()):
        if isinstance(child, Mapping):
            yield ("anyOf", str(i)), child


def _short(value: object) -> str:
    return str(value)[:MAX_QUOTED]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
