"""The unmodified openai SDK talking to a model that thinks, over a socket."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from engine.fake import FakeEngine
from engine.messages import EngineRequest
from tests.e2e.running_server import serve
from tests.protocol.thinking_templates import thinking_tokenizer
from tests.server.small_app import NAMES, small_state
from tests.server.thinking_app import answering, thinking_state

MODEL = NAMES[0]
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where is 巴黎?"}]
THINKING = ("<think>\nParis? ", "In 🇫🇷.\n", "</think>\n\n", "In ", "France.")
REASONING, CONTENT = "Paris? In 🇫🇷.", "In France."
NUM_REASONING = len(thinking_tokenizer().encode("".join(THINKING[:2]), parse_special=True)) + 1


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, FakeEngine]]:
    engine = FakeEngine()
    with serve(thinking_state(small_state(engine=engine))) as server:
        yield server.url, engine


@pytest.fixture
def engine(running: tuple[str, FakeEngine]) -> FakeEngine:
    _, engine = running
    engine.script = answering(*THINKING, pause_s=0.002)
    engine.requests.clear()
    return engine


@pytest.fixture
def client(running: tuple[str, FakeEngine], engine: FakeEngine) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running[0]}/v1", api_key="any", max_retries=0) as client:
        yield client


def reasoning_of(message: Any) -> str | None:
    """The field as clients read it; the SDK keeps fields that it does not know."""
    value = getattr(message, "reasoning_content", None)
    assert value is None or isinstance(value, str)
    return value


def num_reasoning_tokens(usage: Any) -> int:
    count = usage.completion_tokens_details.reasoning_tokens
    assert isinstance(count, int)
    return count


def test_a_reply(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    (choice,) = reply.choices
    assert (reasoning_of(choice.message), choice.message.content) == (REASONING, CONTENT)
    assert choice.finish_reason == "stop"
    assert num_reasoning_tokens(reply.usage) == NUM_REASONING


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream(client: OpenAI, n: int) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=n, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    for index in range(n):
        deltas = [c.choices[0].delta for c in chunks if c.choices[0].index == index]
        assert "".join(reasoning_of(delta) or "" for delta in deltas) == REASONING
        assert "".join(delta.content or "" for delta in deltas) == CONTENT
        kinds = [bool(delta.content) for delta in deltas if delta.content or reasoning_of(delta)]
        assert kinds == sorted(kinds)  # all of the reasoning, then the content
        assert all(not (delta.content and reasoning_of(delta)) for delta in deltas)
    assert num_reasoning_tokens(last.usage) == n * NUM_REASONING


def test_two_choices(client: OpenAI, engine: FakeEngine) -> None:
    scripts = [answering(*THINKING), answering("No thinking.")]

    def script(request: EngineRequest) -> Any:
        return scripts[int(request.id.rsplit("-", 1)[1])](request)

    engine.script = script
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2)
    messages = [choice.message for choice in reply.choices]
    assert [m.content for m in messages] == [CONTENT, "No thinking."]
    assert [reasoning_of(m) for m in messages] == [REASONING, None]
    assert num_reasoning_tokens(reply.usage) == NUM_REASONING


def test_the_helper_for_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        for _ in stream:
            pass
        (choice,) = stream.get_final_completion().choices
    assert (reasoning_of(choice.message), choice.message.content) == (REASONING, CONTENT)


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"reasoning_effort": "none"},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_thinking_turned_off(
    client: OpenAI, engine: FakeEngine, options: dict[str, Any], stream: bool
) -> None:
    engine.script = answering("In ", "France.")
    reply: Any = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=stream, **options
    )
    if stream:
        deltas = [chunk.choices[0].delta for chunk in reply]
        content = "".join(delta.content or "" for delta in deltas)
        assert not any(reasoning_of(delta) for delta in deltas)
    else:
        content = reply.choices[0].message.content
        assert reasoning_of(reply.choices[0].message) is None
    assert content == CONTENT
    (request,) = engine.requests
    prompt = thinking_tokenizer().decode(request.prompt_token_ids, skip_special=False)
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")


def test_max_tokens_inside_thinking(client: OpenAI, engine: FakeEngine) -> None:
    engine.script = answering(*THINKING[:2], reason="length")
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=30)
    (choice,) = reply.choices
    assert (reasoning_of(choice.message), choice.message.content) == (REASONING + "\n", "")
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    assert num_reasoning_tokens(reply.usage) == reply.usage.completion_tokens == NUM_REASONING - 1
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=30, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(reasoning_of(chunk.delta) or "" for chunk in chunks) == REASONING + "\n"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].finish_reason == "length"


def test_a_reply_goes_back_as_it_came(client: OpenAI, engine: FakeEngine) -> None:
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    again: list[Any] = [*MESSAGES, first.choices[0].message]
    client.chat.completions.create(model=MODEL, messages=again)
    prompt = thinking_tokenizer().decode(engine.requests[-1].prompt_token_ids, skip_special=False)
    assert f"<think>\n{REASONING}\n</think>\n\n{CONTENT}" in prompt
    again.append({"role": "user", "content": "And 伦敦?"})
    client.chat.completions.create(model=MODEL, messages=again)
    prompt = thinking_tokenizer().decode(engine.requests[-1].prompt_token_ids, skip_special=False)
    assert REASONING not in prompt


def test_an_effort_that_the_api_does_not_have(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_body={"reasoning_effort": "enormous"}
        )
    assert caught.value.param == "reasoning_effort"
