"""CompletionRequest field by field, and the JSON of replies read by OpenAI's own model."""

import json
from typing import Any

import msgspec
import pytest
from openai.types import Completion as OpenAICompletion
from openai.types.completion_create_params import CompletionCreateParamsBase

from protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from protocol.errors import InvalidRequest
from protocol.usage import count_usage
from protocol.validation import parse


def read(**fields: object) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"model": "m", "prompt": "p", **fields}).encode())[0]


def test_every_parameter_of_openai_is_known() -> None:
    openai_fields = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert openai_fields <= set(CompletionRequest.model_fields)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts(prompt: object, prompts: object) -> None:
    assert read(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": 1}, "invalid_type", "prompt"),
        ({"prompt": []}, "empty_array", "prompt"),
        ({"prompt": [[]]}, "empty_array", "prompt[0]"),
        ({"prompt": [1, "a"]}, "invalid_type", "prompt[1]"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt[1]"),
        ({"prompt": [[1], [True]]}, "invalid_type", "prompt[1][0]"),
        ({"prompt": [-1]}, "integer_below_min_value", "prompt[0]"),
        ({"prompt": ["a"] * 2049}, "array_above_max_length", "prompt"),
        ({"prompt": ["a"] * 100, "n": 128}, "invalid_value", "n"),
        ({"suffix": "s"}, "unsupported_parameter", "suffix"),
        ({"logprobs": 21}, "integer_above_max_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"n": 2, "best_of": 1}, "invalid_value", "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "invalid_parameter_combination", "best_of"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "integer_below_min_value", "max_tokens"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_refused(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    assert (raised.value.code, raised.value.param) == (code, param)


def test_prompt_is_required() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(CompletionRequest, b'{"model": "m"}')
    assert raised.value.code == "missing_required_parameter"


def test_candidates() -> None:
    assert read().num_candidates == 1
    assert read(n=3).num_candidates == 3
    assert read(n=2, best_of=5).num_candidates == 5
    assert read(n=2, best_of=2, stream=True).num_choices == 2
    assert read(max_tokens=0, echo=True).max_tokens == 0


def test_completion_in_openais_model() -> None:
    logprobs = CompletionLogprobs(["a", "b"], [-2.0, -1.0], [{"a": -2.0}, {"b": -1.0}], [0, 1])
    completion = Completion(
        id="cmpl-1",
        created=1,
        model="m",
        choices=[CompletionChoice("ab", 0, logprobs, "stop")],
        system_fingerprint="fp",
        usage=count_usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1),
    )
    raw = msgspec.json.encode(completion)
    assert OpenAICompletion.model_validate_json(raw).usage is not None
    assert json.loads(raw)["choices"] == [
        {
            "text": "ab",
            "index": 0,
            "logprobs": {
                "tokens": ["a", "b"],
                "token_logprobs": [-2.0, -1.0],
                "top_logprobs": [{"a": -2.0}, {"b": -1.0}],
                "text_offset": [0, 1],
            },
            "finish_reason": "stop",
        }
    ]
