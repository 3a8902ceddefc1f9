"""protocol/structured_output.py through both requests: what is taken and what is refused, where."""

import json
from typing import Any

import pytest

from protocol.chat import ChatRequest
from protocol.completions import CompletionRequest
from protocol.errors import InvalidRequest
from protocol.validation import parse

OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


def schema_format(**fields: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT, **fields}}


def read(**fields: object) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(ChatRequest, json.dumps(body).encode())[0]


def refusal(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    return raised.value


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": schema_format()},
        {"response_format": schema_format(strict=True, description="d")},
        {"response_format": schema_format(strict=None, schema=None)},
        {"response_format": schema_format(schema={"type": "array"})},
        {"structured_outputs": {"json": OBJECT}},
        {"structured_outputs": {"json": json.dumps(OBJECT)}},
        {"structured_outputs": {"regex": "a+", "json": None}},
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"structured_outputs": {"grammar": 'start: "a"'}},
        {"structured_outputs": {"regex": "a+"}, "response_format": {"type": "text"}},
    ],
)
def test_what_is_accepted(fields: dict[str, object]) -> None:
    read(**fields)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": "json"}, "invalid_type", "response_format"),
        ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": schema_format(name="a b")},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": schema_format(name="a" * 65)},
            "string_above_max_length",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": schema_format(schema=[1])},
            "invalid_type",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": schema_format(extra=1)},
            "unknown_parameter",
            "response_format.json_schema.extra",
        ),
        (
            {"response_format": {**schema_format(), "type": "text"}},
            "invalid_parameter_combination",
            "response_format.json_schema",
        ),
        (
            {"response_format": schema_format(strict=True, schema={"type": "object"})},
            "invalid_json_schema",
            "response_format",
        ),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "invalid_value",
            "structured_outputs",
        ),
        ({"structured_outputs": {"choice": []}}, "empty_array", "structured_outputs.choice"),
        ({"structured_outputs": {"regexp": "a"}}, "unknown_parameter", "structured_outputs.regexp"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "invalid_parameter_combination",
            "structured_outputs",
        ),
        (
            {"response_format": {"type": "json_object"}, "ignore_eos": True},
            "invalid_parameter_combination",
            "ignore_eos",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, object], code: str, param: str) -> None:
    error = refusal(**fields)
    assert (error.code, error.param) == (code, param), error.message


def test_a_strict_schema_is_refused_in_openais_words() -> None:
    schema = {**OBJECT, "required": []}
    error = refusal(response_format=schema_format(strict=True, schema=schema, name="answer"))
    assert error.message == (
        "Invalid schema for response_format 'answer': In context=(), 'required' is required to be "
        "supplied and to be an array including every key in properties. Missing 'a'."
    )


def test_completions_take_the_extension_only() -> None:
    def complete(**fields: object) -> CompletionRequest:
        body = {"model": "m", "prompt": "a", **fields}
        return parse(CompletionRequest, json.dumps(body).encode())[0]

    assert complete(structured_outputs={"regex": "a"}).structured_outputs is not None
    clash = {"structured_outputs": {"regex": "a"}, "ignore_eos": True}
    cases: list[tuple[dict[str, object], str]] = [
        ({"response_format": {"type": "json_object"}}, "unknown_parameter"),
        (clash, "invalid_parameter_combination"),
    ]
    for fields, code in cases:
        with pytest.raises(InvalidRequest) as raised:
            complete(**fields)
        assert raised.value.code == code
