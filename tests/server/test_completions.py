"""POST /v1/completions on the wire: echo, logprobs and their offsets, many prompts, best_of."""

from collections.abc import Iterator
from typing import Any

import pytest

from engine.fake import FakeEngine
from engine.messages import EngineRequest, Event, Finished, TokenEvent, TokenLogprobs
from tests.server.scripted_app import App, ids_of, saying
from tests.server.small_app import byte_tokenizer, client_of, small_state

LN2 = 0.6931471805599453


async def test_the_reply_exactly() -> None:
    body = (await App(saying("Hé", "llo", num_cached_tokens=1)).complete()).json()
    assert body.pop("id").startswith("cmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body.pop("system_fingerprint").startswith("fp_")
    usage = body.pop("usage")
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 7)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 1
    assert body == {
        "object": "text_completion",
        "model": "org/small",
        "choices": [{"text": "Héllo", "index": 0, "logprobs": None, "finish_reason": "stop"}],
    }


async def test_the_stream_exactly() -> None:
    app = App(saying("a", "b"))
    *chunks, last, done = await app.complete_events(stream_options={"include_usage": True})
    assert [(chunk["choices"], chunk["usage"]) for chunk in chunks] == [
        ([{"text": "a", "index": 0, "logprobs": None, "finish_reason": None}], None),
        ([{"text": "b", "index": 0, "logprobs": None, "finish_reason": None}], None),
        ([{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}], None),
    ]
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)
    assert done == "[DONE]"
    events = await App(saying("a")).complete_events()
    assert all("usage" not in event for event in events[:-1])


async def test_max_tokens_is_16() -> None:
    app = App()
    body = (await app.complete()).json()
    assert body["choices"][0]["text"] == "ab" * 8
    assert body["choices"][0]["finish_reason"] == "length"


async def test_logprobs() -> None:
    body = (await App(saying("aéb")).complete(logprobs=1)).json()
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b"],
        "token_logprobs": [-0.125, -0.25, -0.375, -0.5],
        "top_logprobs": [
            {"a": -0.125},
            {"bytes:\\xc3": -0.25},
            {"bytes:\\xa9": -0.375},
            {"b": -0.5},
        ],
        "text_offset": [0, 1, 1, 2],
    }
    body = (await App(saying("a")).complete(logprobs=0)).json()
    assert body["choices"][0]["logprobs"]["top_logprobs"] is None


async def test_the_sampled_token_is_among_the_top() -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        (b,) = ids_of("b")
        top = [(ids_of("a")[0], -0.1)]
        yield TokenEvent(request.id, [b], [TokenLogprobs(b, float("-inf"), top)])
        yield Finished(request.id, "length", num_output_tokens=1)

    logprobs = (await App(script).complete(logprobs=1)).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"a": -0.1, "b": -9999.0}]
    assert logprobs["token_logprobs"] == [-9999.0]  # JSON has no infinity


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs(stream: bool) -> None:
    fields: dict[str, Any] = {"prompt": "é<|end|>b", "echo": True, "logprobs": 1, "max_tokens": 2}
    if stream:
        choices = [e["choices"][0] for e in (await App().complete_events(**fields))[:-1]]
        assert choices[0]["text"] == "é<|end|>b"
        assert choices[0]["finish_reason"] is None
    else:
        choices = (await App().complete(**fields)).json()["choices"]
        assert choices[0]["text"] == "é<|end|>b" + "é"
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    merged = {name: [one for part in parts for one in part[name]] for name in parts[0]}
    c3, a9 = "bytes:\\xc3", "bytes:\\xa9"
    assert merged["tokens"] == [c3, a9, "<|end|>", "b", c3, a9]
    assert merged["token_logprobs"] == [None, *[-LN2] * 5]
    assert merged["top_logprobs"][0] is None
    assert all(len(top) == 1 for top in merged["top_logprobs"][1:])
    assert merged["text_offset"] == [0, 0, 1, 8, 9, 9]


async def test_echo_without_logprobs() -> None:
    body = (await App(saying("c")).complete(echo=True)).json()
    assert body["choices"][0]["text"] == "abc"
    assert body["choices"][0]["logprobs"] is None
    texts = [
        event["choices"][0]["text"]
        for event in (await App(saying("c")).complete_events(echo=True))[:-1]
    ]
    assert texts == ["ab", "c", ""]


async def test_echo_of_token_ids_and_nothing_more() -> None:
    app = App()
    body = (await app.complete(prompt=ids_of("xyz"), echo=True, max_tokens=0, logprobs=0)).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("xyz", "length")
    assert choice["logprobs"] == {
        "tokens": ["x", "y", "z"],
        "token_logprobs": [None, -LN2, -LN2],
        "top_logprobs": None,
        "text_offset": [0, 1, 2],
    }
    assert body["usage"]["completion_tokens"] == 0
    assert app.engine.requests[0].sampling.max_tokens == 0


async def test_echo_leaves_out_the_bos_token() -> None:
    state = small_state(engine=FakeEngine(script=saying("c")), add_bos_token=True)
    body = {"model": "alias", "prompt": "ab", "echo": True, "logprobs": 0}
    async with client_of(state) as client:
        (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
    assert choice["text"] == "abc"


async def test_many_prompts_with_many_choices() -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        prompt = byte_tokenizer().decode(request.prompt_token_ids)
        yield from saying(f"{prompt}{request.id[-1]}")(request)

    body = (await App(script).complete(prompt=["x", "yy"], n=2)).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "x0"),
        (1, "x1"),
        (2, "yy2"),
        (3, "yy3"),
    ]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 2 * 3 + 2 * 4


def ranked(*logprobs: float) -> Any:
    """Sequence i says its index, with the i-th logprob for each of 1 + i tokens."""

    def script(request: EngineRequest) -> Iterator[Event | float]:
        index = int(request.id.rpartition("-")[2])
        token_ids = ids_of(str(index)) * (1 + index)
        wanted = request.sampling.logprobs
        assert wanted is not None
        found = [TokenLogprobs(token_id, logprobs[index], []) for token_id in token_ids]
        yield TokenEvent(request.id, token_ids, found)
        yield Finished(request.id, "length", num_output_tokens=len(token_ids))

    return script


async def test_best_of_returns_the_best_by_mean_logprob() -> None:
    app = App(ranked(-3.0, -1.0, -2.0))
    body = (await app.complete(n=2, best_of=3)).json()
    assert [(one["index"], one["text"]) for one in body["choices"]] == [(0, "11"), (1, "222")]
    assert [one["logprobs"] for one in body["choices"]] == [None, None]
    assert body["usage"]["completion_tokens"] == 1 + 2 + 3


async def test_best_of_for_each_prompt() -> None:
    app = App(ranked(-3.0, -1.0, -1.0, -3.0))
    body = (await app.complete(prompt=["a", "b"], best_of=2, logprobs=0)).json()
    assert [(one["index"], one["text"]) for one in body["choices"]] == [(0, "11"), (1, "222")]
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [-1.0, -1.0]


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "s"}, {"prompt": []}, {"best_of": 2, "stream": True}, {"prompt": [9999]}, {"x": 1}],
    ids=str,
)
async def test_refused(fields: dict[str, Any]) -> None:
    app = App()
    response = await app.complete(**fields)
    assert response.status_code == 400
    assert app.engine.requests == []


async def test_context_length_has_no_param() -> None:
    error = (await App().complete(prompt="x" * 200)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", None)


async def test_obfuscation_and_stop() -> None:
    options = {"include_obfuscation": True, "include_usage": True}
    app = App(saying("ab", "ST", "OP", "x", pause_s=0.001))
    events = await app.complete_events(stop=["STOP"], stream_options=options)
    assert [event["choices"][0]["text"] for event in events[:-2]] == ["ab", ""]
    assert all(event["obfuscation"] for event in events[:-2])
    assert events[-2]["usage"]["completion_tokens"] == 6
    assert len(app.engine.aborted) == 1
