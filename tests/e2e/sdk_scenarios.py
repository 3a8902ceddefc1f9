"""What the unmodified openai SDK must be able to do, against any server and any model.

Each scenario takes a client and a model name and asserts on the answers; none knows what is behind
the server. Answers to the same request, alone and beside others, are compared with each other: they
ask with temperature 0, and a real engine must compute in float32, where a batch does not round
differently.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Where is 巴黎?"},
]

Scenario = Callable[[OpenAI, str], None]
AsyncScenario = Callable[[AsyncOpenAI, str], Awaitable[None]]


def ask(client: OpenAI, model: str, max_tokens: int = 24, stop: str | None = None) -> str:
    """The answer to MESSAGES, which every scenario may ask again."""
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=max_tokens, stop=stop
    )
    content = reply.choices[0].message.content
    assert isinstance(content, str)
    return content


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


def chat(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=24
    )
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == model
    assert reply.created > 1_600_000_000
    (choice,) = reply.choices
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.content
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 24
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def chat_max_tokens(client: OpenAI, model: str) -> None:
    replies = [
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=1),
        client.chat.completions.create(
            model=model, messages=MESSAGES, temperature=0, max_completion_tokens=1
        ),
    ]
    for reply in replies:
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 1


def chat_stream(client: OpenAI, model: str) -> None:
    with client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=24, stream=True
    ) as stream:
        chunks = list(stream)
    assert {(c.id, c.object, c.model, c.created) for c in chunks} == {
        (chunks[0].id, "chat.completion.chunk", model, chunks[0].created)
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) == {None}
    assert all(c.usage is None for c in chunks)
    text = text_of(chunks)
    assert "\ufffd" not in text.rstrip("\ufffd")  # only max_tokens may cut a character
    assert text == ask(client, model)


def chat_stream_usage(client: OpenAI, model: str) -> None:
    with client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert all(c.usage is None and c.choices for c in chunks[:-1])
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=5
    )
    assert chunks[-1].usage is not None and reply.usage is not None
    assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == reply.usage.prompt_tokens


def chat_stream_helper(client: OpenAI, model: str) -> None:
    whole = ask(client, model)
    stop = whole[len(whole) // 2 :][:3]  # the helper takes finish reason "length" for an error
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, temperature=0, max_tokens=24, stop=stop
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == whole[: whole.index(stop)]


def chat_n(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=24, n=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    one = ask(client, model)
    assert [choice.message.content for choice in reply.choices] == [one, one]
    with client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=24, n=2, stream=True
    ) as stream:
        chunks = list(stream)
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert mine[-1].finish_reason in ("stop", "length")
        assert [choice.finish_reason for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert text_of(chunks, index) == one


def chat_logprobs(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        logprobs=True,
        top_logprobs=3,
    )
    (choice,) = reply.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    joined = b"".join(bytes(token.bytes or []) for token in tokens)
    assert choice.message.content is not None
    # a last token may hold half a character, which the content cannot
    assert joined.startswith(choice.message.content.rstrip("\ufffd").encode())
    for token in tokens:
        assert math.isfinite(token.logprob) and token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob
    with client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        logprobs=True,
        top_logprobs=3,
        stream=True,
    ) as stream:
        streamed = [
            token
            for chunk in stream
            for choice in chunk.choices
            if choice.logprobs is not None
            for token in choice.logprobs.content or []
        ]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]


def chat_stop(client: OpenAI, model: str) -> None:
    whole = ask(client, model)
    stop = whole[len(whole) // 2 :][:3]  # three characters over token borders
    expected = whole[: whole.index(stop)]
    assert ask(client, model, stop=stop) == expected
    with client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        stop=["never said", stop],
        stream=True,
    ) as stream:
        chunks = list(stream)
    assert text_of(chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def chat_extensions(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        temperature=0.5,
        top_p=0.9,
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": -100},
        user="someone",
        max_tokens=4,
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2},
    )
    assert reply.choices[0].message.content is not None


def completion(client: OpenAI, model: str) -> None:
    reply = client.completions.create(
        model=model, prompt="Once upon", temperature=0, max_tokens=8, logprobs=2
    )
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    (choice,) = reply.choices
    assert choice.text
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None and choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    with client.completions.create(
        model=model, prompt="Once upon", temperature=0, max_tokens=8, stream=True
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == choice.text
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


def completion_batch_echo(client: OpenAI, model: str) -> None:
    reply = client.completions.create(
        model=model, prompt=["One", "Two words"], temperature=0, max_tokens=3, echo=True
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert [
        choice.text.startswith(p)
        for choice, p in zip(reply.choices, ("One", "Two words"), strict=True)
    ] == [True, True]
    assert reply.usage is not None and reply.usage.completion_tokens <= 6


def models(client: OpenAI, model: str) -> None:
    listed = client.models.list().data
    assert model in [m.id for m in listed]
    retrieved = client.models.retrieve(model)
    assert retrieved in listed
    assert (retrieved.id, retrieved.object) == (model, "model")
    assert retrieved.owned_by == "qwen-serve"
    assert retrieved.created > 0


def raw_response_headers(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, max_tokens=1
    )
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    request_id = raw.headers["x-request-id"]
    assert request_id.startswith("req_")
    assert raw.parse()._request_id == request_id
    again = client.models.with_raw_response.list()
    assert again.headers["x-request-id"] != request_id


def streaming_response(client: OpenAI, model: str) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=MESSAGES, max_tokens=4, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def bad_requests(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert caught.value.request_id is not None
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES, extra_body={"temprature": 1})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "temprature")
    image: ChatCompletionMessageParam = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
    }
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=[image])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[])
    assert caught.value.param == "messages"


def context_overflow(client: OpenAI, model: str) -> None:
    limit = client.models.retrieve(model).model_dump()["max_model_len"]
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "a b " * limit}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"


def not_found(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no/such-model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="no such route")


async def async_chat(client: AsyncOpenAI, model: str) -> None:
    async def whole() -> str | None:
        reply = await client.chat.completions.create(
            model=model, messages=MESSAGES, temperature=0, max_tokens=16
        )
        return reply.choices[0].message.content

    async def streamed() -> str:
        stream = await client.chat.completions.create(
            model=model, messages=MESSAGES, temperature=0, max_tokens=16, stream=True
        )
        async with stream:
            return text_of([chunk async for chunk in stream])

    answers = await asyncio.gather(*(whole() for _ in range(4)), *(streamed() for _ in range(4)))
    assert answers[0]
    assert set(answers) == {answers[0]}


async def async_completion_and_models(client: AsyncOpenAI, model: str) -> None:
    reply = await client.completions.create(model=model, prompt="Hi", max_tokens=2)
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert model in [m.id async for m in client.models.list()]


async def async_bad_request(client: AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=model, messages=MESSAGES, top_p=2)


SCENARIOS: list[Scenario] = [
    *(chat, chat_max_tokens, chat_stream, chat_stream_usage, chat_stream_helper, chat_n),
    *(chat_logprobs, chat_stop, chat_extensions, completion, completion_batch_echo, models),
    *(raw_response_headers, streaming_response, bad_requests, context_overflow, not_found),
]
ASYNC_SCENARIOS: list[AsyncScenario] = [async_chat, async_completion_and_models, async_bad_request]
