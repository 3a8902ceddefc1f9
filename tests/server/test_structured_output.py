"""Structured output over HTTP with a scripted engine: what it is asked, and how it refuses."""

import dataclasses
from typing import Any

import pytest

from engine.messages import Fault, Grammar, Thinking
from protocol.prompt import ChatTemplate
from server.grammars import thinking_before
from server.thinking import thinking_of
from tests.server.scripted_app import App, ids_of, saying
from tests.server.small_app import small_state

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"b": {}, "a": {}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
BROKEN = Fault("invalid_grammar", "In context=('properties', 'b'), Unimplemented keys.")


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            Grammar(kind="json_object", origin="response_format"),
        ),
        (
            {"response_format": FORMAT},
            Grammar(
                kind="json_schema",
                text='{"type":"object","properties":{"b":{},"a":{}}}',
                origin="response_format 'person'",
            ),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            Grammar(kind="json_object", origin="response_format 'x'"),
        ),
        (
            {"structured_outputs": {"json": '{"const": 1}'}},
            Grammar(kind="json_schema", text='{"const": 1}', origin="structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"regex": "a+"}},
            Grammar(kind="regex", text="a+", origin="structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"choice": ["é", "b"]}},
            Grammar(kind="choice", text='["é","b"]', origin="structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            Grammar(kind="lark", text='start: "a"', origin="structured_outputs.grammar"),
        ),
    ],
)
async def test_what_the_engine_is_asked(fields: dict[str, object], grammar: Grammar | None) -> None:
    app = App(saying("{}"))
    response = await app.chat(n=2, **fields)
    assert response.status_code == 200
    assert [request.grammar for request in app.engine.requests] == [grammar, grammar]


async def test_a_completion() -> None:
    app = App(saying("a"))
    assert (await app.complete(structured_outputs={"regex": "a"})).status_code == 200
    assert app.engine.requests[0].grammar == Grammar(
        kind="regex", text="a", origin="structured_outputs.regex"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        (
            {"response_format": FORMAT},
            "response_format",
            "invalid_json_schema",
            "Invalid schema for response_format 'person': In context=('properties', 'b'), "
            "Unimplemented keys.",
        ),
        (
            {"structured_outputs": {"json": {}}},
            "structured_outputs.json",
            "invalid_json_schema",
            "Invalid schema for structured_outputs.json: In context=('properties', 'b'), "
            "Unimplemented keys.",
        ),
        (
            {"structured_outputs": {"regex": "("}},
            "structured_outputs.regex",
            "invalid_grammar",
            "Invalid 'structured_outputs.regex': In context=('properties', 'b'), Unimplemented "
            "keys.",
        ),
    ],
)
async def test_what_does_not_compile_is_a_400_before_any_stream(
    stream: bool, fields: dict[str, object], param: str, code: str, message: str
) -> None:
    app = App(saying(reason="error", fault=BROKEN))
    response = await app.chat(stream=stream, n=2, **fields)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


async def test_a_fault_on_the_way_is_an_event() -> None:
    app = App(saying("{", reason="error", fault=Fault("invalid_grammar", "It takes too long.")))
    events = await app.chat_events(response_format={"type": "json_object"})
    assert events[-1]["error"]["param"] == "response_format"
    assert "It takes too long." in events[-1]["error"]["message"]


class TestThinking:
    """A model that may think does so before the grammar holds."""

    @pytest.mark.parametrize(
        ("template_end", "thinking"),
        [
            ("", Thinking("<think>", "</think>", is_open=False)),
            ("<think>\n", Thinking("<think>", "</think>", is_open=True)),
            ("<think>\n\n</think>\n\n", None),
        ],
    )
    def test_where_the_prompt_ends(self, template_end: str, thinking: Thinking | None) -> None:
        model = small_state().model
        template = "{# <think></think> #}{{ messages[0].content }}<|end|>" + template_end
        chat_template = ChatTemplate(template, model.tokenizer)
        model = dataclasses.replace(model, chat_template=chat_template)
        parted = thinking_of(ids_of("hi<|end|>" + template_end), model)
        assert thinking_before(parted, model) == thinking
