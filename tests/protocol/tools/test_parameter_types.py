"""What a schema says of its arguments' types, be it direct, by alternatives or by reference."""

from typing import Any

import pytest

from protocol.tools.parameter_types import parameter_types
from protocol.tools.schema_parts import Inseparable, alternatives


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"type": "array"}], "allOf": [{"type": "object"}]}, {"array", "object"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": [1, None, 1.5, [], {}]}, {"integer", "number", "null", "array", "object"}),
        ({"const": True}, {"boolean"}),
        ({"$ref": "#/$defs/unit"}, {"string"}),
        ({"allOf": [{"$ref": "#/$defs/unit"}]}, {"string"}),
        ({"$ref": "#/$defs/circle"}, set()),
        ({"$ref": "#/$defs/nowhere/at/all"}, set()),
        ({"$ref": "https://example.com/schema"}, set()),
        ({"type": 3, "anyOf": "no", "enum": "no"}, set()),
        ({}, set()),
        (True, set()),
    ],
)
def test_types(schema: Any, types: set[str]) -> None:
    root = {
        "type": "object",
        "properties": {"a": schema},
        "$defs": {"unit": {"enum": ["C", "F"]}, "circle": {"$ref": "#/$defs/circle"}},
    }
    assert parameter_types(root, "a") == types
    assert parameter_types(root, "b") == set()


@pytest.mark.parametrize(
    ("schema", "name", "types"),
    [
        ({"additionalProperties": {"type": "string"}}, "x", {"string"}),
        ({"additionalProperties": True}, "x", set()),
        ({"$ref": "#/$defs/args"}, "a", {"integer"}),
        ({"properties": {"b": {"$ref": "#/$defs/args/properties/a"}}}, "b", {"integer"}),
        ({"properties": {"b": {"$ref": "#/$defs/a~1b%25/anyOf/1"}}}, "b", {"null"}),
        ({"properties": {"b": {"$ref": "#/$defs/a~1b%25/anyOf/2"}}}, "b", set()),
        ({"properties": {"b": {"$ref": "#"}}}, "b", {"object"}),
    ],
)
def test_where_a_schema_says_it(schema: dict[str, Any], name: str, types: set[str]) -> None:
    definitions = {
        "args": {"properties": {"a": {"type": "integer"}}},
        "a/b%": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
    assert parameter_types({"type": "object", **schema, "$defs": definitions}, name) == types


def test_circles_of_alternatives_come_to_an_end() -> None:
    circle = {"anyOf": [*({"$ref": "#/$defs/a"} for _ in range(200)), {"type": "null"}]}
    root = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": circle}}
    assert parameter_types(root, "a") == {"null"}
    with pytest.raises(Inseparable):
        alternatives({"$ref": "#/$defs/a"}, root)


@pytest.mark.parametrize("schema", [{}, {"properties": None}, {"properties": ["a"]}])
def test_a_schema_without_properties(schema: dict[str, Any]) -> None:
    assert parameter_types(schema, "a") == set()
