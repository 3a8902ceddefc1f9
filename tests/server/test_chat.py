"""POST /v1/chat/completions on the wire: chunks in their order, the reply, refusals."""

from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionUserMessageParam

from engine.messages import Fault
from server.app import create_app
from server.config import ServerConfig
from tests.server.scripted_app import App, events_of, ids_of, saying

PROMPT = "user:hi<|end|>assistant:"
USER: ChatCompletionUserMessageParam = {"role": "user", "content": "hi"}


def choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def opening(index: int) -> dict[str, Any]:
    return choice(index, {"role": "assistant", "content": "", "refusal": None})


def usage(completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    prompt_tokens = len(ids_of(PROMPT))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_the_stream_exactly() -> None:
    response = await App(saying("Hel", "lo")).chat(stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in chunks] == [
        [opening(0)],
        [choice(0, {"content": "Hel"})],
        [choice(0, {"content": "lo"})],
        [choice(0, {}, "stop")],
    ]
    for chunk in chunks:
        assert set(chunk) == {
            *("id", "object", "created", "model", "service_tier", "system_fingerprint", "choices")
        }
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "org/small"
    for name in ("id", "created", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert "\n\ndata: [DONE]\n\n" in response.text


async def test_usage_chunk() -> None:
    app = App(saying("Hi", num_cached_tokens=4))
    *chunks, last, done = await app.chat_events(stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert (last["choices"], last["usage"]) == ([], usage(3, 4))
    assert done == "[DONE]"


async def test_no_usage_unless_asked_for() -> None:
    events = await App(saying("Hi")).chat_events(stream_options={"include_usage": False})
    assert all("usage" not in event for event in events[:-1])


async def test_obfuscation() -> None:
    events = await App(saying("Hi")).chat_events(stream_options={"include_obfuscation": True})
    assert all(event["obfuscation"] for event in events[:-1])
    events = await App(saying("Hi")).chat_events(stream_options={"include_obfuscation": False})
    assert all("obfuscation" not in event for event in events[:-1])


async def test_two_choices() -> None:
    app = App(saying("a", "b", pause_s=0.001), saying("c", reason="length", pause_s=0.001))
    events = await app.chat_events(n=2, stream_options={"include_usage": True})
    choices = [event["choices"][0] for event in events[:-2]]
    assert choices[:2] == [opening(0), opening(1)]
    assert [one for one in choices[2:] if one["index"] == 0] == [
        choice(0, {"content": "a"}),
        choice(0, {"content": "b"}),
        choice(0, {}, "stop"),
    ]
    assert [one for one in choices[2:] if one["index"] == 1] == [
        choice(1, {"content": "c"}),
        choice(1, {}, "length"),
    ]
    assert events[-2]["usage"] == usage(4)


async def test_the_reply_exactly() -> None:
    response = await App(saying("Hé", "llo", num_cached_tokens=2)).chat()
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body == {
        "object": "chat.completion",
        "model": "org/small",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Héllo", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage(7, 2),
        "service_tier": "default",
    }


async def test_an_empty_answer() -> None:
    body = (await App(saying()).chat()).json()
    assert body["choices"][0]["message"]["content"] == ""
    events = await App(saying()).chat_events()
    assert [event["choices"] for event in events[:-1]] == [[opening(0)], [choice(0, {}, "stop")]]


def token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


async def test_logprobs() -> None:
    body = (await App(saying("ab")).chat(logprobs=True, top_logprobs=2)).json()
    assert body["choices"][0]["logprobs"] == {
        "content": [
            {**token("a", -0.125), "top_logprobs": [token("a", -0.125), token("b", -1.125)]},
            {**token("b", -0.25), "top_logprobs": [token("b", -0.25), token("c", -1.25)]},
        ],
        "refusal": None,
    }
    body = (await App(saying("ab")).chat(logprobs=True)).json()
    assert [one["top_logprobs"] for one in body["choices"][0]["logprobs"]["content"]] == [[], []]


async def test_logprobs_of_a_part_of_a_character() -> None:
    events = await App(saying("é")).chat_events(logprobs=True)
    assert events[1]["choices"][0]["delta"] == {"content": "é"}
    content = events[1]["choices"][0]["logprobs"]["content"]
    assert [(one["token"], one["bytes"]) for one in content] == [
        ("\\xc3", [0xC3]),
        ("\\xa9", [0xA9]),
    ]
    assert events[0]["choices"][0]["logprobs"] is None
    assert events[2]["choices"][0]["logprobs"] is None


async def test_a_stop_string_held_back_over_chunks() -> None:
    app = App(saying("ok S", "T", "O", "P no", "more", pause_s=0.001))
    events = await app.chat_events(stop=["STOP"], stream_options={"include_usage": True})
    assert [event["choices"] for event in events[:-2]] == [
        [opening(0)],
        [choice(0, {"content": "ok "})],
        [choice(0, {}, "stop")],
    ]
    assert events[-2]["usage"] == usage(len("ok STOP"))  # not what came with it in one step
    assert len(app.engine.aborted) == 1


async def test_a_false_start_of_a_stop_string() -> None:
    events = await App(saying("a ST", "AY")).chat_events(stop="STOP", logprobs=True)
    contents = [event["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert contents == ["", "a ", "STAY", None]
    logprobs = [event["choices"][0]["logprobs"] or {"content": []} for event in events[:-1]]
    assert [len(one["content"]) for one in logprobs] == [0, 2, 4, 0]


@given(
    st.lists(st.text(alphabet="aé巴ST", min_size=1, max_size=4), max_size=5),
    st.lists(st.text(alphabet="aéST", min_size=1, max_size=3), max_size=2),
    st.booleans(),
)
@settings(max_examples=40)
async def test_the_reply_is_the_fold_of_the_stream(
    texts: list[str], stops: list[str], logprobs: bool
) -> None:
    fields = {"stop": stops, "logprobs": logprobs, "n": 2}
    script = saying(*texts)
    reply = (await App(script).chat(**fields)).json()
    events = await App(script).chat_events(stream_options={"include_usage": True}, **fields)
    for expected in reply["choices"]:
        chunks = [
            event["choices"][0]
            for event in events[:-2]
            if event["choices"][0]["index"] == expected["index"]
        ]
        content = "".join(chunk["delta"].get("content", "") for chunk in chunks)
        assert content == expected["message"]["content"]
        assert [c["finish_reason"] for c in chunks if c["finish_reason"]] == [
            expected["finish_reason"]
        ]
        tokens = [one for c in chunks if c["logprobs"] for one in c["logprobs"]["content"]]
        assert tokens == (expected["logprobs"]["content"] if logprobs else [])
    assert events[-2]["usage"] == reply["usage"]


async def test_every_name_is_served_under_the_first() -> None:
    assert (await App(saying("a")).chat(model="alias")).json()["model"] == "org/small"


async def test_unknown_model() -> None:
    response = await App().chat(model="gpt-4o")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_ask_nothing_of_the_engine(stream: bool) -> None:
    app = App()
    refused: list[dict[str, Any]] = [
        {"tools": [{}]},
        {"foo": 1},
        {"max_tokens": 1000},
        {"logit_bias": {"999": 1}},
    ]
    for fields in refused:
        response = await app.chat(stream=stream, **fields)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/json"
    response = await app.post("/v1/chat/completions", b'{"model": ')
    assert response.status_code == 400
    assert app.engine.requests == []


async def test_context_length() -> None:
    response = await App().chat(messages=[{"role": "user", "content": "x" * 200}])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "messages"


async def test_ignored_parameters_are_named() -> None:
    app = App(saying("a"), config=ServerConfig(unknown_fields="warn"))
    fields: dict[str, object] = {"foo": 1, "bad\r\nname: ü": 2}
    for stream in (False, True):
        response = await app.chat(stream=stream, **fields)
        assert response.status_code == 200
        assert response.headers["x-qwen-serve-ignored-parameters"] == (
            "foo, bad%0D%0Aname%3A%20%C3%BC"
        )
    assert "x-qwen-serve-ignored-parameters" not in (await app.chat()).headers
    many = {f"field{i}": i for i in range(5000)}
    assert len((await app.chat(**many)).headers["x-qwen-serve-ignored-parameters"]) < 1000


async def test_a_long_prompt_is_encoded_off_the_loop() -> None:
    messages = [{"role": "user", "content": "x" * 50_000}]
    response = await App().chat(messages=messages)
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_the_openai_client() -> None:
    app = App(saying("Hel", "lo", num_cached_tokens=1))
    transport = httpx2.ASGITransport(create_app(app.state))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(api_key="k", base_url="http://x/v1", http_client=http) as client,
    ):
        reply = await client.chat.completions.create(model="alias", messages=[USER], n=2)
        assert [choice.message.content for choice in reply.choices] == ["Hello", "Hello"]
        stream = await client.chat.completions.create(model="alias", messages=[USER], stream=True)
        parts = [chunk.choices[0].delta.content async for chunk in stream]
        assert parts == ["", "Hel", "lo", None]
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(model="alias", messages=[USER], temperature=3)
    assert (raised.value.code, raised.value.param) == ("decimal_above_max_value", "temperature")


async def test_the_openai_client_in_a_broken_stream() -> None:
    app = App(saying("a", reason="error", fault=Fault("engine_dead", "The engine died.")))
    transport = httpx2.ASGITransport(create_app(app.state))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(api_key="k", base_url="http://x/v1", http_client=http) as client,
    ):
        stream = await client.chat.completions.create(model="alias", messages=[USER], stream=True)
        with pytest.raises(openai.APIError, match="The engine died"):
            async for _ in stream:
                pass
