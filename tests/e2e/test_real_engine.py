"""The unmodified openai SDK against the command with the real engine and the real model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.real_server import RealServer, real_server
from tests.e2e.running_server import MODEL
from tests.e2e.sdk_scenarios import ASYNC_SCENARIOS, SCENARIOS, AsyncScenario, Scenario

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--served-model-name", MODEL, "--dtype", "float32", "--kv-cache-memory", "512MiB")
    with real_server(folder, smollm2_path, *options) as running:
        yield running


@pytest.fixture
def client(server: RealServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_scenario(scenario: Scenario, client: OpenAI) -> None:
    scenario(client, MODEL)


@pytest.mark.parametrize("scenario", ASYNC_SCENARIOS, ids=lambda s: s.__name__)
async def test_async_scenario(scenario: AsyncScenario, server: RealServer) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        await scenario(client, MODEL)


def test_it_knows_the_capital_of_france(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=24,
    )
    content = reply.choices[0].message.content
    assert content is not None and "Paris" in content
    assert reply.choices[0].finish_reason == "stop"


def test_a_seed_repeats_the_answer(client: OpenAI) -> None:
    def answer(seed: int) -> str | None:
        reply = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=1.0,
            seed=seed,
            max_tokens=16,
        )
        return reply.choices[0].message.content

    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in range(4)}) > 1
