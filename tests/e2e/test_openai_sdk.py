"""The unmodified openai SDK against the real application with a fake engine."""

import json
from collections.abc import Callable, Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from engine.fake import FakeEngine
from engine.messages import EngineRequest, Event, Fault, Finished, TokenEvent
from tests.e2e.conftest import ANSWER, API_KEY
from tests.e2e.running_server import ALIAS, MODEL, RunningServer
from tests.e2e.sdk_scenarios import (
    ASYNC_SCENARIOS,
    MESSAGES,
    SCENARIOS,
    AsyncScenario,
    Scenario,
    ask,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.real_model


@pytest.fixture
def client(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_scenario(scenario: Scenario, client: OpenAI) -> None:
    scenario(client, MODEL)


@pytest.mark.parametrize("scenario", ASYNC_SCENARIOS, ids=lambda s: s.__name__)
async def test_async_scenario(scenario: AsyncScenario, server_url: str) -> None:
    async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="any", max_retries=0) as client:
        await scenario(client, MODEL)


def test_answer_is_what_the_engine_said(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=ALIAS, messages=MESSAGES)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"


def test_missing_and_wrong_keys(keyed_server: RunningServer) -> None:
    url = f"{keyed_server.url}/v1"
    for headers, code in ((None, "invalid_api_key"), ({"Authorization": "Digest x"}, None)):
        with (
            OpenAI(base_url=url, api_key="sk-wrong", default_headers=headers) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert (caught.value.type, caught.value.code) == ("invalid_request_error", code)
        assert caught.value.request_id is not None
    with OpenAI(base_url=url, api_key=API_KEY) as client:
        assert ask(client, MODEL, max_tokens=2)


def faulty(fault: Fault, num_tokens: int) -> Callable[[EngineRequest], Iterator[Event | float]]:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        for token_id in range(100, 100 + num_tokens):
            yield TokenEvent(request.id, [token_id])
            yield 0
        yield Finished(request.id, "error", num_output_tokens=num_tokens, fault=fault)

    return script


@pytest.mark.parametrize("code", ["internal", "numerical_error", "engine_dead"])
@pytest.mark.parametrize("num_tokens", [0, 3])
def test_engine_fault_is_a_server_error(
    client: OpenAI, fake_engine: FakeEngine, code: str, num_tokens: int
) -> None:
    fake_engine.script = faulty(Fault(code, "it broke"), num_tokens)  # type: ignore[arg-type]
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.status_code == (503 if code == "engine_dead" else 500)


def test_engine_fault_in_a_stream_raises_api_error(client: OpenAI, fake_engine: FakeEngine) -> None:
    fake_engine.script = faulty(Fault("internal", "it broke"), 3)
    with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        chunks = []
        with pytest.raises(openai.APIError) as caught:
            for chunk in stream:
                chunks.append(chunk)
    assert len(chunks) >= 1
    assert type(caught.value) is openai.APIError
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "server_error"


def test_no_done_after_an_error_in_a_stream(client: OpenAI, fake_engine: FakeEngine) -> None:
    fake_engine.script = faulty(Fault("internal", "it broke"), 3)
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=MESSAGES, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert "error" in json.loads(lines[-1].removeprefix("data: "))


def test_rejected_by_the_engine_is_the_clients_error(
    client: OpenAI, fake_engine: FakeEngine
) -> None:
    fake_engine.script = faulty(Fault("kv_cache_exceeded", "needs 900 blocks, has 256"), 0)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)


def endless(request: EngineRequest) -> Iterator[Event | float]:
    while True:
        yield TokenEvent(request.id, [100])
        yield 0.001


@pytest.mark.parametrize("n", [1, 2])
def test_closing_a_streaming_response_aborts_in_the_engine(
    client: OpenAI, fake_engine: FakeEngine, n: int
) -> None:
    fake_engine.script = endless
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=MESSAGES, stream=True, n=n
    ) as response:
        lines = response.iter_lines()  # kept: dropping it would close the response
        next(lines)
        wait_until(lambda: fake_engine.stats().num_running == n)
    wait_until(lambda: fake_engine.stats().num_running == 0)
    assert sorted(fake_engine.aborted) == sorted(r.id for r in fake_engine.requests)
    assert len(fake_engine.aborted) == n


def test_breaking_out_of_a_stream_aborts_in_the_engine(
    client: OpenAI, fake_engine: FakeEngine
) -> None:
    fake_engine.script = endless
    with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    wait_until(lambda: fake_engine.stats().num_running == 0)
    assert fake_engine.aborted == [fake_engine.requests[0].id]


def test_client_timeout_aborts_a_whole_reply_too(client: OpenAI, fake_engine: FakeEngine) -> None:
    fake_engine.script = endless
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, timeout=0.3)
    wait_until(lambda: fake_engine.stats().num_running == 0)
    assert len(fake_engine.aborted) == 1


def test_stop_string_ends_the_sequence_in_the_engine(
    client: OpenAI, fake_engine: FakeEngine
) -> None:
    assert ask(client, MODEL, max_tokens=100, stop="costs") == "The café "
    wait_until(lambda: fake_engine.stats().num_running == 0)
    assert len(fake_engine.aborted) == 1  # otherwise it would go on to max_tokens
