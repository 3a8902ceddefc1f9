"""Thinking on the wire of /v1/chat/completions: deltas, the reply, logprobs, counts, prompts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.thinking_templates import ALWAYS, EFFORT, HYBRID, NEVER, thinking_tokenizer
from tests.server.scripted_app import App, saying
from tests.server.test_chat import choice, opening
from tests.server.thinking_app import answering, thinking_app

THINKING = ("<think>\nLet", " me.\n</think>", "\n\nHi ", "you")


def prompt_of(app: App) -> str:
    (request,) = app.engine.requests
    return app.state.model.tokenizer.decode(request.prompt_token_ids, skip_special=False)


async def test_the_stream_exactly() -> None:
    app = thinking_app(answering(*THINKING))
    *chunks, last, done = await app.chat_events(stream_options={"include_usage": True})
    assert [chunk["choices"] for chunk in chunks] == [
        [opening(0)],
        [choice(0, {"reasoning_content": "Let"})],
        [choice(0, {"reasoning_content": " me."})],
        [choice(0, {"content": "Hi "})],
        [choice(0, {"content": "you"})],
        [choice(0, {}, "stop")],
    ]
    num_reasoning = 1 + len("\nLet me.\n") + 1
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] == num_reasoning
    assert last["usage"]["completion_tokens"] == num_reasoning + len("\n\nHi you") + 1
    assert done == "[DONE]"


async def test_reasoning_and_content_of_one_event_are_two_chunks() -> None:
    events = await thinking_app(answering("".join(THINKING))).chat_events(logprobs=True)
    deltas = [event["choices"][0]["delta"] for event in events[1:-2]]
    assert deltas == [{"reasoning_content": "Let me."}, {"content": "Hi you"}]
    assert events[1]["choices"][0]["logprobs"] is None
    assert len(events[2]["choices"][0]["logprobs"]["content"]) == 19


async def test_the_reply_exactly() -> None:
    body = (await thinking_app(answering(*THINKING)).chat()).json()
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hi you",
        "reasoning_content": "Let me.",
        "refusal": None,
    }


async def test_without_thinking_there_is_no_field_for_it() -> None:
    for app in (
        thinking_app(answering("Hi")),
        thinking_app(answering("<think>\n\n</think>\n\nHi")),
        App(saying("Hi")),
    ):
        body = (await app.chat()).json()
        assert body["choices"][0]["message"] == {
            "role": "assistant",
            "content": "Hi",
            "refusal": None,
        }


async def test_a_model_without_markers_is_left_alone() -> None:
    body = (await App(saying("<think>a</think>b")).chat()).json()
    assert body["choices"][0]["message"]["content"] == "<think>a</think>b"
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_max_tokens_inside_thinking() -> None:
    script = answering("<think>\nLet me\n", reason="length")
    body = (await thinking_app(script).chat(max_tokens=9)).json()
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["message"]["reasoning_content"] == "Let me\n"
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] == 9


@pytest.mark.parametrize("is_special", [False, True])
async def test_a_prompt_that_opens_thinking(is_special: bool) -> None:
    script = answering(
        "So.\n</think>", "\n\nHi", tokenizer=thinking_tokenizer(is_special=is_special)
    )
    app = thinking_app(script, template=ALWAYS, is_special=is_special)
    message = (await app.chat()).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("So.", "Hi")
    assert prompt_of(app).endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize(
    "fields",
    [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}],
)
async def test_thinking_turned_off(fields: dict[str, Any]) -> None:
    """The answer is content, whatever is in it: nothing ends up as reasoning by mistake."""
    app = thinking_app(answering("Hi", "</think>", "<think>"))
    body = (await app.chat(**fields)).json()
    assert body["choices"][0]["message"]["content"] == "Hi</think><think>"
    assert "reasoning_content" not in body["choices"][0]["message"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert prompt_of(app).endswith("<think>\n\n</think>\n\n")


async def test_an_effort_reaches_the_template() -> None:
    app = thinking_app(answering("Hi"), template=EFFORT)
    await app.chat(reasoning_effort="high")
    assert prompt_of(app).startswith("high<|im_start|>")


async def test_refused_efforts_and_arguments() -> None:
    for template, fields, param in (
        (NEVER, {"reasoning_effort": "low"}, "reasoning_effort"),
        (ALWAYS, {"reasoning_effort": "none"}, "reasoning_effort"),
        (HYBRID, {"reasoning_effort": "huge"}, "reasoning_effort"),
        (HYBRID, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (HYBRID, {"chat_template_kwargs": {"eos_token": "x"}}, "chat_template_kwargs"),
    ):
        app = thinking_app(answering("Hi"), template=template)
        response = await app.chat(**fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert app.engine.requests == []


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_earlier_reasoning_is_the_templates(field: str) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", field: "because"},
    ]
    app = thinking_app(answering("Hi"))
    await app.chat(messages=messages)
    assert "<think>\nbecause\n</think>\n\nb" in prompt_of(app)
    app = thinking_app(answering("Hi"))
    await app.chat(messages=[*messages, {"role": "user", "content": "c"}])
    assert "because" not in prompt_of(app)


async def test_going_on_with_an_answer_that_thinks() -> None:
    app = thinking_app(answering(" see.\n</think>\n\nHi"))
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nLet me"},
    ]
    response = await app.chat(messages=messages, continue_final_message=True)
    message = response.json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (" see.", "Hi")


async def test_stop_strings_are_for_the_content() -> None:
    app = thinking_app(answering("<think>STOP\n</think>", "a", "ST", "OP b"))
    body = (await app.chat(stop="STOP", logprobs=True)).json()
    (one,) = body["choices"]
    assert (one["message"]["reasoning_content"], one["message"]["content"]) == ("STOP", "a")
    assert one["finish_reason"] == "stop"
    tokens = [entry["token"] for entry in one["logprobs"]["content"]]
    assert tokens == ["<think>", *"STOP\n", "</think>", "a"]


pieces = st.sampled_from(["<think>", "</think>", "\n", "<", "a", "é", "ST", "OP", "</thi"])


@given(
    st.lists(st.lists(pieces, min_size=1, max_size=3).map("".join), max_size=5),
    st.sampled_from([HYBRID, ALWAYS]),
    st.lists(st.sampled_from(["STOP", "a", "\n"]), max_size=2),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_the_reply_is_the_fold_of_the_stream(
    texts: list[str], template: str, stops: list[str], logprobs: bool
) -> None:
    fields: dict[str, Any] = {"stop": stops, "logprobs": logprobs, "n": 2}
    script = answering(*texts)
    reply = (await thinking_app(script, template=template).chat(**fields)).json()
    app = thinking_app(script, template=template)
    events = await app.chat_events(stream_options={"include_usage": True}, **fields)
    for expected in reply["choices"]:
        chunks = [e["choices"][0] for e in events[:-2]]
        chunks = [chunk for chunk in chunks if chunk["index"] == expected["index"]]
        for field in ("content", "reasoning_content"):
            joined = "".join(chunk["delta"].get(field, "") for chunk in chunks)
            assert joined == expected["message"].get(field, "")
        kinds = [kind for chunk in chunks[1:-1] for kind in chunk["delta"]]
        assert kinds == sorted(kinds, reverse=True)  # "reasoning_content", then "content"
        tokens = [one for c in chunks if c["logprobs"] for one in c["logprobs"]["content"]]
        assert tokens == (expected["logprobs"]["content"] if logprobs else [])
        assert [-one["logprob"] for one in tokens] == [i + 1.0 for i in range(len(tokens))]
        if logprobs and expected["finish_reason"] == "stop" and not stops:
            assert "".join(one["token"] for one in tokens if "\\x" not in one["token"]) == (
                "".join(texts).replace("é", "")
            )
    assert events[-2]["usage"] == reply["usage"]
