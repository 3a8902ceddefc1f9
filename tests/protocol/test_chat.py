"""ChatRequest field by field, and the JSON of replies and chunks read by OpenAI's own models."""

import json
from typing import Any, get_args

import msgspec
import pytest
from openai.types.chat import ChatCompletion as OpenAIChatCompletion
from openai.types.chat import ChatCompletionChunk as OpenAIChatChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.shared.reasoning_effort import ReasoningEffort as OpenAIReasoningEffort

from protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    ChunkDelta,
    ReasoningEffort,
    ReplyMessage,
    TokenLogprob,
    TopLogprob,
)
from protocol.errors import InvalidRequest
from protocol.usage import count_usage
from protocol.validation import parse

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(**fields: object) -> ChatRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return parse(ChatRequest, json.dumps(body).encode())[0]


def refusal(**fields: object) -> tuple[str | None, str | None]:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    return raised.value.code, raised.value.param


def test_every_parameter_of_openai_is_known() -> None:
    openai_fields = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert openai_fields <= set(ChatRequest.model_fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0}, {"temperature": 2}, {"top_p": 0}, {"n": 128}, {"seed": -(2**63)},
        {"seed": 2**63 - 1}, {"stop": "a"}, {"stop": ["a"] * 16}, {"stop": None}, {"stop": []},
        {"logit_bias": {"5": -100, "6": 100.0}}, {"logprobs": True, "top_logprobs": 20},
        {"max_tokens": 5, "max_completion_tokens": 5}, {"store": False},
        {"service_tier": "auto"}, {"service_tier": "default"},
        {"response_format": {"type": "text"}}, {"modalities": ["text"]},
        {"reasoning_effort": "none"}, {"reasoning_effort": "max"}, {"reasoning_effort": None},
        {"tools": []}, {"tool_choice": "none"}, {"function_call": "none"},
        {"metadata": {"a": "b"}}, {"metadata": {"k" * 64: "v" * 512}}, {"user": "u"},
        {"safety_identifier": "s"}, {"prompt_cache_key": "k"},
        {"prompt_cache_retention": "in_memory"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"top_k": -1}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"min_tokens": 1},
        {"ignore_eos": True}, {"stop_token_ids": [1]}, {"include_stop_str_in_output": True},
        {"skip_special_tokens": False}, {"priority": -5}, {"cache_salt": "s"},
        {"chat_template_kwargs": {"enable_thinking": False}}, {"add_generation_prompt": False},
    ],
    ids=str,
)  # fmt: skip
def test_accepted(fields: dict[str, Any]) -> None:
    request = read(**fields)
    assert set(fields) <= request.model_fields_set


def test_every_optional_parameter_may_be_null() -> None:
    optional = {
        name: None for name, field in ChatRequest.model_fields.items() if not field.is_required()
    }
    assert read(**optional).num_choices == 1


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "empty_array", "messages"),
        ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ({"temperature": -0.1}, "decimal_below_min_value", "temperature"),
        ({"temperature": "1"}, "invalid_type", "temperature"),
        ({"top_p": 1.1}, "decimal_above_max_value", "top_p"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"n": True}, "invalid_type", "n"),
        ({"presence_penalty": -3}, "decimal_below_min_value", "presence_penalty"),
        ({"frequency_penalty": 3}, "decimal_above_max_value", "frequency_penalty"),
        ({"seed": 2**63}, "integer_above_max_value", "seed"),
        ({"seed": -(2**63) - 1}, "integer_below_min_value", "seed"),
        ({"stop": ""}, "empty_string", "stop"),
        ({"stop": ["a", ""]}, "empty_string", "stop[1]"),
        ({"stop": ["a"] * 17}, "array_above_max_length", "stop"),
        ({"stop": 1}, "invalid_type", "stop"),
        ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"1": 101}}, "decimal_above_max_value", "logit_bias.1"),
        ({"top_logprobs": 1}, "invalid_value", "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"logprobs": 1}, "invalid_type", "logprobs"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "invalid_parameter_combination",
         "max_tokens"),
        ({"stream": 1}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "unknown_parameter", "stream_options.x"),
        ({"metadata": {str(i): "" for i in range(17)}}, "object_above_max_properties", "metadata"),
        ({"metadata": {"a": "v" * 513}}, "string_above_max_length", "metadata.a"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
        ({"foo": 1}, "unknown_parameter", "foo"),
        ({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty"),
        ({"min_p": 2}, "decimal_above_max_value", "min_p"),
        ({"top_k": -2}, "integer_below_min_value", "top_k"),
        ({"cache_salt": ""}, "empty_string", "cache_salt"),
        ({"continue_final_message": True}, "invalid_value", "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True},
         "invalid_parameter_combination", "continue_final_message"),
        ({"tool_choice": "auto"}, "invalid_value", "tool_choice"),
        ({"function_call": "auto"}, "invalid_value", "function_call"),
        ({"parallel_tool_calls": True}, "invalid_value", "parallel_tool_calls"),
        ({"store": True}, "unsupported_value", "store"),
        ({"store": 0}, "unsupported_value", "store"),
        ({"service_tier": "flex"}, "unsupported_value", "service_tier"),
        ({"modalities": ["text", "audio"]}, "unsupported_value", "modalities"),
        ({"prompt_cache_retention": "24h"}, "unsupported_value", "prompt_cache_retention"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"functions": [{}]}, "missing_required_parameter", "functions[0].name"),
        ({"audio": {}}, "unsupported_parameter", "audio"),
        ({"moderation": {}}, "unsupported_parameter", "moderation"),
        ({"prediction": {"type": "content"}}, "unsupported_parameter", "prediction"),
        ({"prompt_cache_options": {}}, "unsupported_parameter", "prompt_cache_options"),
        ({"reasoning_effort": "huge"}, "invalid_value", "reasoning_effort"),
        ({"reasoning_effort": 1}, "invalid_type", "reasoning_effort"),
        ({"verbosity": "low"}, "unsupported_parameter", "verbosity"),
        ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
    ],
    ids=str,
)  # fmt: skip
def test_refused(fields: dict[str, Any], code: str, param: str) -> None:
    assert refusal(**fields) == (code, param)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"role": "user"}, "missing_required_parameter", "messages[0].content"),
        ({"role": "user", "content": None}, "invalid_type", "messages[0].content"),
        ({"role": "user", "content": []}, "empty_array", "messages[0].content"),
        ({"content": "a"}, "missing_required_parameter", "messages[0].role"),
        ({"role": "boss", "content": "a"}, "invalid_value", "messages[0].role"),
        ({"role": 1, "content": "a"}, "invalid_type", "messages[0].role"),
        ({"role": "tool", "content": "a"}, "missing_required_parameter",
         "messages[0].tool_call_id"),
        ({"role": "tool", "content": "a", "tool_call_id": "c"}, "invalid_value",
         "messages[0].role"),
        ({"role": "tool", "tool_call_id": "c"}, "missing_required_parameter",
         "messages[0].content"),
        ({"role": "function", "content": "a"}, "missing_required_parameter", "messages[0].name"),
        ({"role": "user", "content": "a", "tool_call_id": "c"}, "invalid_value",
         "messages[0].tool_call_id"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "invalid_value",
         "messages[0].tool_calls"),
        ({"role": "user", "content": "a", "function_call": CALL["function"]}, "invalid_value",
         "messages[0].function_call"),
        ({"role": "assistant", "tool_calls": [CALL], "function_call": CALL["function"]},
         "invalid_parameter_combination", "messages[0].function_call"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "unsupported_value",
         "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [CALL]}, "invalid_value", "messages"),
        ({"role": "user", "content": "a", "name": "<|im_start|>"}, "invalid_value",
         "messages[0].name"),
        ({"role": "user", "content": "a", "x": 1}, "unknown_parameter", "messages[0].x"),
        ({"role": "user", "content": "a", "reasoning_content": "b"}, "invalid_value",
         "messages[0].reasoning_content"),
        ({"role": "system", "content": "a", "reasoning": ""}, "invalid_value",
         "messages[0].reasoning"),
        ({"role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": "c"},
         "invalid_parameter_combination", "messages[0].reasoning"),
        ({"role": "assistant", "content": "a", "reasoning_content": 1}, "invalid_type",
         "messages[0].reasoning_content"),
        ({"role": "assistant", "tool_calls": [{}]}, "missing_required_parameter",
         "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "function_call": {}}, "missing_required_parameter",
         "messages[0].function_call.name"),
        ({"role": "user", "content": ["a"]}, "invalid_type", "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "missing_required_parameter",
         "messages[0].content[0].text"),
        *(
            ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, kind: {}}]},
             "unsupported_parameter", "messages[0].content[1]")
            for kind in ("image_url", "input_audio", "file", "refusal")
        ),
    ],
    ids=str,
)  # fmt: skip
def test_messages_refused(message: dict[str, Any], code: str, param: str) -> None:
    assert refusal(messages=[message]) == (code, param)


def test_messages_do_not_repeat_long_values() -> None:
    long = "x" * 5000
    bodies: list[dict[str, Any]] = [{"service_tier": long}, {"messages": [{"role": long}]}]
    for fields in bodies:
        with pytest.raises(InvalidRequest) as raised:
            read(**fields)
        assert len(raised.value.message) < 400


def test_a_reply_can_be_sent_back() -> None:
    """As openai's `message.model_dump()` writes it."""
    reply = OpenAIChatCompletion.model_validate_json(msgspec.json.encode(completion()))
    messages = [USER, reply.choices[0].message.model_dump(), USER]
    assert [message.text for message in read(messages=messages).messages] == ["hi", "hé", "hi"]


def test_what_clients_add_to_messages_with_calls() -> None:
    """OpenAI's SDK what it has parsed, a stream's fold the index, Qwen-Agent its own ids."""
    called = {**CALL["function"], "parsed_arguments": {"a": 1}}  # type: ignore[dict-item]
    messages = [
        USER,
        {"role": "assistant", "parsed": None, "tool_calls": [{**CALL, "index": 0}]},
        {"role": "tool", "content": "r", "id": "c1", "extra": {"function_id": "c1"}},
        {"role": "assistant", "content": "{}", "parsed": {}},
        {"role": "assistant", "function_call": called},
        {"role": "function", "name": "f", "content": None},
    ]
    read_messages = read(messages=messages).messages
    assert read_messages[1].calls == [CALL]
    assert read_messages[2].result_of == "c1"
    assert read_messages[4].calls == [{"type": "function", "function": CALL["function"]}]
    for role, field in (("user", "parsed"), ("user", "id"), ("assistant", "extra")):
        message = {"role": role, "content": "a", field: {} if field == "extra" else "x"}
        assert refusal(messages=[message]) == ("invalid_value", f"messages[0].{field}")


def test_message_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": parts},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
    ]
    assert [message.text for message in read(messages=messages).messages] == ["a\nb", "", ""]


def completion() -> ChatCompletion:
    token = TokenLogprob("é", -0.5, [195, 169], [TopLogprob("é", -0.5, [195, 169])])
    message = ReplyMessage(content="hé")
    return ChatCompletion(
        id="chatcmpl-1",
        created=1,
        model="m",
        choices=[ChatChoice(0, message, ChatLogprobs([token]), "length")],
        usage=count_usage(prompt_tokens=5, cached_tokens=4, completion_tokens=3),
        system_fingerprint="fp_1",
    )


def test_completion_in_openais_model() -> None:
    reply = OpenAIChatCompletion.model_validate_json(msgspec.json.encode(completion()), strict=True)
    assert not reply.model_extra
    assert reply.choices[0].message.content == "hé"
    assert reply.choices[0].logprobs is not None and reply.choices[0].logprobs.content
    assert reply.choices[0].logprobs.content[0].bytes == [195, 169]
    assert reply.usage is not None and reply.usage.total_tokens == 8
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (
            ChunkDelta(role="assistant", content="", refusal=None),
            {"role": "assistant", "content": "", "refusal": None},
        ),
        (ChunkDelta(content="é"), {"content": "é"}),
        (ChunkDelta(), {}),
    ],
)
def test_chunk_deltas(delta: ChunkDelta, expected: dict[str, Any]) -> None:
    choices = [ChunkChoice(0, delta, None, None)]
    chunk = ChatChunk(id="i", created=1, model="m", choices=choices, system_fingerprint="f")
    raw = msgspec.json.encode(chunk)
    assert OpenAIChatChunk.model_validate_json(raw, strict=True).choices[0].index == 0
    assert json.loads(raw) == {
        "id": "i",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "service_tier": "default",
        "system_fingerprint": "f",
        "choices": [{"index": 0, "delta": expected, "logprobs": None, "finish_reason": None}],
    }


def test_efforts_are_openais() -> None:
    (literal,) = (one for one in get_args(OpenAIReasoningEffort) if one is not type(None))
    assert set(get_args(ReasoningEffort)) == set(get_args(literal))


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({"reasoning_content": "b"}, "b"),
        ({"reasoning": "b"}, "b"),
        ({"reasoning": "b", "reasoning_content": "b"}, "b"),
        ({"reasoning": None, "reasoning_content": ""}, ""),
        ({}, None),
    ],
)
def test_earlier_thinking(fields: dict[str, Any], thinking: str | None) -> None:
    request = read(messages=[USER, {"role": "assistant", "content": "a", **fields}])
    assert request.messages[1].thinking == thinking


def test_thinking_is_in_the_reply_only_if_there_was_some() -> None:
    plain = {"role": "assistant", "content": "a", "refusal": None}
    assert json.loads(msgspec.json.encode(ReplyMessage(content="a"))) == plain
    thought = msgspec.json.encode(ReplyMessage(content="a", reasoning_content="b"))
    assert json.loads(thought) == plain | {"reasoning_content": "b"}
    assert msgspec.json.encode(ChunkDelta(reasoning_content="b")) == b'{"reasoning_content":"b"}'
