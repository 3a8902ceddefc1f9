"""Calls that are required, of the command with the real engine and a model too weak to trust."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import BadRequestError, OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.e2e.real_server import real_server
from tests.e2e.running_server import MODEL

pytestmark = pytest.mark.real_model

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
}
MEETING = {
    "type": "object",
    "$defs": {"Person": {"type": "object", "properties": {"name": {"type": "string"}}}},
    "properties": {
        "title": {"type": "string"},
        "date": {"type": "string", "format": "date"},
        "guests": {"type": "array", "items": {"$ref": "#/$defs/Person"}, "maxItems": 3},
        "room": {"anyOf": [{"type": "string", "pattern": "^[A-Z][0-9]{2}$"}, {"type": "null"}]},
    },
    "required": ["title", "date", "room"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "get_weather": WEATHER,
    "add_meeting": MEETING,
    "now": {"type": "object", "properties": {}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "?", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
QUESTIONS = (
    *("What is the weather in Paris?", "Hi", "你好，今天几号？", "Tell me a story about a dog."),
    *("Invite Tom to a meeting.", "2 + 2?", "Write a poem.", "Stop.", "Action: dance", "{"),
)


@pytest.fixture(scope="module", params=["react", "hermes"])
def client(
    request: pytest.FixtureRequest, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenAI]:
    options = ("--served-model-name", MODEL, "--kv-cache-memory", "256MiB")
    folder = tmp_path_factory.mktemp("server")
    with (
        real_server(folder, smollm2_path, *options, "--tool-format", request.param) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


def ask(client: OpenAI, question: str, **fields: Any) -> Any:
    create: Any = client.chat.completions.create
    messages = [{"role": "user", "content": question}]
    options = {"temperature": 1, "max_tokens": 90, "tools": TOOLS, **fields}
    return create(model=MODEL, messages=messages, **options)


def check(calls: Any, names: tuple[str, ...] = tuple(SCHEMAS)) -> None:
    for call in calls:
        assert call.function.name in names
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_every_call_is_valid(client: OpenAI) -> None:
    def answer(seed: int) -> Any:
        question = QUESTIONS[seed % len(QUESTIONS)]
        return ask(client, question, seed=seed, tool_choice="required").choices[0]

    with ThreadPoolExecutor(16) as pool:
        choices = list(pool.map(answer, range(16)))
    for choice in choices:
        # many would go on with a string or a list for ever: they are completed in time
        assert choice.finish_reason in ("tool_calls", "length")
        assert choice.message.tool_calls
        check(choice.message.tool_calls)


def test_one_call_of_the_named_function_in_a_stream(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "add_meeting"}}
    choice = {"n": 2, "seed": 3, "tool_choice": named, "parallel_tool_calls": False}
    chunks = ask(client, "Hi", stream=True, **choice)
    state: Any = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(chunk)
    completion = state.current_completion_snapshot  # the final one raises on a length
    assert len(completion.choices) == 2
    for one in completion.choices:
        assert one.finish_reason in ("stop", "length")
        assert len(one.message.tool_calls) == 1
        check(one.message.tool_calls, ("add_meeting",))


def test_optional_calls_are_valid_where_there_are_some(client: OpenAI) -> None:
    replies = [ask(client, question, seed=5, max_tokens=50) for question in QUESTIONS[:4]]
    for reply in replies:
        [choice] = reply.choices
        if choice.finish_reason == "tool_calls":
            check(choice.message.tool_calls)
        else:
            assert choice.finish_reason in ("stop", "length")


def test_a_schema_that_cannot_be_compiled_is_named(client: OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "string", "pattern": "("}}},
    }
    broken = {"type": "function", "function": {"name": "broken", "parameters": parameters}}
    with pytest.raises(BadRequestError) as raised:
        ask(client, "Hi", tools=[*TOOLS, broken])
    assert raised.value.code == "invalid_function_parameters"
    assert "function 'broken'" in raised.value.message
    assert "('properties', 'a', 'items')" in raised.value.message
    assert ask(client, "Hi", max_tokens=3).usage.completion_tokens == 3
