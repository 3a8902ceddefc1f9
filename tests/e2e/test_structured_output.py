"""Structured output with the command, the real engine and a model that is too weak to trust."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.e2e.real_server import RealServer, real_server
from tests.e2e.running_server import MODEL
from tests.engine.test_grammar_compiler import SLOW, chain, doubling

pytestmark = pytest.mark.real_model

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 30},
        "year": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "rating": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 5}, {"type": "null"}]},
        "genres": {
            "type": "array",
            "items": {"enum": ["drama", "comedy", "documentary"]},
            "maxItems": 3,
        },
    },
    "required": ["title", "year", "rating", "genres"],
    "additionalProperties": False,
}
SUBJECTS = (
    *("a film about the sea", "the weather", "Paris", "a recipe for bread", "prime numbers"),
    *("your favourite book", "a dog", "the moon", "trains", "a letter to a friend"),
)
QUESTIONS = [f"{verb} {subject}." for verb in ("Describe", "Tell me of") for subject in SUBJECTS]


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--served-model-name", MODEL, "--kv-cache-memory", "256MiB")
    with real_server(folder, smollm2_path, *options) as running:
        yield running


@pytest.fixture
def client(server: RealServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def ask(client: OpenAI, question: str = "Hi", **fields: Any) -> Any:
    create: Any = client.chat.completions.create
    return create(model=MODEL, messages=[{"role": "user", "content": question}], **fields)


def json_schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_every_answer_is_valid_under_the_schema(client: OpenAI) -> None:
    assert len(QUESTIONS) == 20

    def answer(seed: int) -> Any:
        options = {"temperature": 1, "seed": seed, "max_tokens": 300}
        return ask(client, QUESTIONS[seed], response_format=json_schema(SCHEMA), **options)

    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(answer, range(20)))
    for reply in replies:
        assert reply.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(reply.choices[0].message.content), SCHEMA)


def test_a_stream_with_choices_and_logprobs(client: OpenAI) -> None:
    texts = {0: "", 1: ""}
    counts = {0: 0, 1: 0}
    for chunk in ask(
        client,
        stream=True,
        n=2,
        logprobs=True,
        response_format=json_schema({**SCHEMA, "title": "streamed"}),
        max_tokens=300,
        seed=5,
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            counts[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    for text in texts.values():
        jsonschema.validate(json.loads(text), SCHEMA)
    assert texts[0] != texts[1] and min(counts.values()) > 10


class Film(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str = Field(max_length=30)
    kind: Literal["film", "series"]
    seasons: int | None


def test_the_sdk_parses_into_a_model(client: OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "A film?"}],
        response_format=Film,
        max_tokens=200,
        seed=3,
    )
    film = reply.choices[0].message.parsed
    assert isinstance(film, Film)


def test_json_object_regex_choice_and_grammar(client: OpenAI) -> None:
    def answer(**fields: Any) -> str:
        content: str = ask(client, max_tokens=200, seed=1, **fields).choices[0].message.content
        return content

    def outputs(**fields: object) -> dict[str, object]:
        return {"extra_body": {"structured_outputs": fields}}

    assert re.fullmatch(r"\d{3}-\d{4}", answer(**outputs(regex=r"\d{3}-\d{4}")))
    assert answer(**outputs(choice=["yes", "no", "é?"])) in ("yes", "no", "é?")
    assert re.fullmatch("(ab)+c", answer(**outputs(grammar='start: ("ab")~1..5 "c"')))
    jsonschema.validate(json.loads(answer(**outputs(json=SCHEMA))), SCHEMA)
    assert answer(response_format={"type": "json_object"}).startswith("{")
    stopped = answer(**outputs(regex="[a-z]{30}x"), stop=["a", "e", "i", "o", "u", "y", "x"])
    assert re.fullmatch("[b-df-hj-np-tvwz]*", stopped)
    completion = client.completions.create(
        model=MODEL, prompt="Two words:", extra_body={"structured_outputs": {"choice": ["a b"]}}
    )
    assert completion.choices[0].text == "a b"


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_does_not_compile_is_a_400(client: OpenAI, stream: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"items": {"not": {}}}}}
    with pytest.raises(BadRequestError) as caught:
        ask(client, stream=stream, response_format=json_schema(schema))
    body: Any = caught.value.body
    assert body["code"] == "invalid_json_schema" and body["param"] == "response_format"
    assert body["message"] == (
        "Invalid schema for response_format 'answer': In context=('properties', 'a', 'items'), "
        'Unimplemented keys: ["not"].'
    )


def test_pathological_grammars_stall_nobody(server: RealServer, client: OpenAI) -> None:
    """Those that would take minutes, gigabytes or the stack, while another stream runs."""
    hostile: list[dict[str, object]] = [
        {"response_format": json_schema(doubling(22))},
        {"response_format": json_schema(chain(2000))},
        {"structured_outputs": {"grammar": SLOW.text}},
        {"structured_outputs": {"regex": "a" * 1_000_000}},
        {"structured_outputs": {"regex": "(" * 5000 + ")" * 5000}},
        {"response_format": json_schema({"enum": [f"value {i}" for i in range(60_000)]})},
    ]
    statuses: list[int] = []

    def attack() -> None:
        for fields in hostile:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            statuses.append(answer.status_code)

    def gaps(until: threading.Thread | None) -> list[float]:
        times = [time.monotonic()]
        body = {"ignore_eos": True}
        for _ in ask(client, "Tell me a long story.", stream=True, max_tokens=900, extra_body=body):
            times.append(time.monotonic())
            if (until is None and len(times) > 60) or (until and not until.is_alive()):
                break
        return [b - a for a, b in pairwise(times)]

    gaps(None)
    attacker = threading.Thread(target=attack)
    attacker.start()
    worst = max(gaps(attacker))
    attacker.join()
    assert statuses == [400] * len(hostile)
    assert worst < 1.0  # seconds between two tokens; a stall would be two at least
    assert ask(client, max_tokens=3).choices[0].message.content  # and the engine is the same
    assert "restart" not in server.log.read_text()
