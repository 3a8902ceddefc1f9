"""protocol/strict_schema.py: what OpenAI refuses of a strict schema, and where."""

from typing import Any

import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from protocol.strict_schema import MAX_DEPTH, strict_problem


def of(properties: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **other,
    }


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = of({"v": {"type": "string"}})
    for _ in range(depth):
        schema = of({"v": schema})
    return schema


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({}, "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"None\"'."),
        ({"type": "array", "items": {"type": "null"}}, "got 'type: \"array\"'."),
        ({"type": "object"}, "In context=(), 'additionalProperties' is required to be supplied"),
        (of({}, additionalProperties=True), "and to be false."),
        (of({"a": {"type": "object"}}), "In context=('properties', 'a'), 'additionalProperties'"),
        (of({"a": {"type": "null"}}, required=[]), "In context=(), 'required' is required to be"),
        (of({"a": {"type": "null"}}, required=None), "array including every key in properties."),
        (of({"a": {"type": "null"}}, required=[]), "Missing 'a'."),
        (of({"a": {"type": "null"}}, required=["a", "b"]), "Extra required key 'b' supplied."),
        (of({"a": {}}), "In context=('properties', 'a'), schema must have a 'type' key."),
        (
            of({"a": {"type": "array"}}),
            "In context=('properties', 'a'), array schema missing items.",
        ),
        (
            of({"a": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"not": {}}]}}}),
            "In context=('properties', 'a', 'items', 'anyOf', '1'), 'not' is not permitted.",
        ),
        (of({}, **{"$defs": {"x": {"allOf": []}}}), "In context=('$defs', 'x'), 'allOf' is not"),
        (nested(MAX_DEPTH), f"deeper than {MAX_DEPTH} levels"),
        (of({f"p{i}": {"type": "null"} for i in range(5001)}), "more than 5000 properties"),
        (of({"a": {"enum": list(range(1001))}}), "1000 enum values"),
    ],
)
def test_problems(schema: dict[str, Any], problem: str) -> None:
    found = strict_problem(schema)
    assert found is not None and problem in found


@pytest.mark.parametrize(
    "schema",
    [
        of({}),
        of({"a": {"type": ["string", "null"]}, "b": {"enum": ["x"]}, "c": {"const": 1}}),
        of({"a": {"$ref": "#/$defs/x"}}, **{"$defs": {"x": of({"y": {"$ref": "#"}})}}),
        nested(MAX_DEPTH - 2),
    ],
)
def test_what_is_accepted(schema: dict[str, Any]) -> None:
    assert strict_problem(schema) is None


def test_what_the_sdk_makes_of_a_pydantic_model_is_accepted() -> None:
    class Step(BaseModel):
        explanation: str
        next: "Step | None" = None

    class Answer(BaseModel):
        steps: list[Step]
        result: float | None

    assert strict_problem(to_strict_json_schema(Answer)) is None
