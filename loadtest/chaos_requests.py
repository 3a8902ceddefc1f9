"""What is asked while engines are killed: every kind of output that has to be resumed exactly.

The same number gives the same requests, each of which has one right answer: greedy, or sampled
with a seed.
"""

import random
from collections.abc import Iterator
from typing import Any

from loadtest.workloads import words

Request = tuple[str, dict[str, Any]]  # path behind /v1, body without the model

_SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 5},
        "score": {"type": "integer"},
    },
    "required": ["title", "tags", "score"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_place",
        "description": "Find a place.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "country": {"type": "string"}},
            "required": ["name", "country"],
        },
    },
}


def requests(seed: int, count: int) -> list[Request]:
    """So many, in turn of each kind."""
    generator = random.Random(seed)
    kinds = list(_kinds())
    made = []
    for i in range(count):
        path, options = kinds[i % len(kinds)]
        text = f"{i}: {words(generator, generator.randint(5, 60))}"
        subject: dict[str, Any] = {"prompt": text}
        if path == "/chat/completions":
            subject = {"messages": [{"role": "user", "content": text}]}
        length = {"max_tokens": generator.randint(40, 160), "seed": generator.getrandbits(31)}
        common = {"stream": True, "stream_options": {"include_usage": True}}
        made.append((path, {**subject, **length, **options, **common}))
    return made


def _kinds() -> Iterator[Request]:
    chat, plain = "/chat/completions", "/completions"
    schema = {"name": "record", "schema": _SCHEMA, "strict": True}
    yield chat, {"temperature": 0, "ignore_eos": True}
    yield chat, {"temperature": 0.9, "top_p": 0.95, "ignore_eos": True}
    yield chat, {"n": 2, "temperature": 1.0, "ignore_eos": True}
    yield chat, {"response_format": {"type": "json_schema", "json_schema": schema}}
    yield chat, {"tools": [_TOOL], "tool_choice": "required", "temperature": 0.8}
    yield chat, {"logprobs": True, "top_logprobs": 3, "temperature": 0.7, "ignore_eos": True}
    yield chat, {"frequency_penalty": 0.8, "presence_penalty": 0.3, "temperature": 0.8}
    yield plain, {"n": 2, "temperature": 0.8, "top_k": 20, "ignore_eos": True}
    yield plain, {"temperature": 0, "stop": ["the end", "\n\n\n"], "repetition_penalty": 1.1}
    yield plain, {"echo": True, "logprobs": 1, "temperature": 0.6}
