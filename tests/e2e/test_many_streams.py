"""Two hundred concurrent streams through the real server; some clients leave half-way.

Every client that stays gets exactly one end, those that leave cost nothing more, and the engine
ends with every block free: it also checks that itself whenever it falls idle (BlockManager's
check_idle) and would go down.
"""

import asyncio
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.real_server import real_server

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]

NUM_STREAMS = 200
ENDLESS = 4000  # tokens asked for by those who leave: all of them would take an hour
TEXT = "The history of the city begins with a small village at the river, and a market. "


@dataclass
class Stream:
    num_words: int
    max_tokens: int
    leaves_after: int | None = None  # content chunks; None: stays to the end
    data: list[str] = field(default_factory=list)

    @property
    def chunks(self) -> list[dict]:  # type: ignore[type-arg]
        return [json.loads(data) for data in self.data if data != "[DONE]"]


def make_streams() -> list[Stream]:
    rng = random.Random(7)
    streams = [
        Stream(num_words=int(2 ** rng.uniform(0, 8)), max_tokens=rng.randint(1, 40))
        for _ in range(NUM_STREAMS)
    ]
    for stream in rng.sample(streams, 60):
        stream.max_tokens, stream.leaves_after = ENDLESS, rng.randint(0, 8)
    return streams


async def run(client: httpx.AsyncClient, stream: Stream) -> None:
    content = " ".join((TEXT * 20).split()[: stream.num_words])
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": stream.max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    num_content = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line:
                continue
            assert line.startswith("data: ")
            stream.data.append(line.removeprefix("data: "))
            num_content += '"content":' in line
            if stream.leaves_after is not None and num_content > stream.leaves_after:
                return


async def engine_metrics(client: httpx.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    return {
        sample.name.removeprefix("qwen_serve_engine_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("qwen_serve_engine_")
    }


async def wait_until_idle(client: httpx.AsyncClient) -> dict[str, float]:
    while True:
        metrics = await engine_metrics(client)
        if metrics["running_sequences"] + metrics["waiting_sequences"] == 0:
            return metrics
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("workers", [1, 2])
async def test_two_hundred_streams(workers: int, smollm2_path: Path, tmp_path: Path) -> None:
    options = ("--served-model-name", "m", "--workers", str(workers), "--kv-cache-memory", "64MiB")
    streams = make_streams()
    with real_server(tmp_path, smollm2_path, *options) as server:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=None)
        ) as client:
            await asyncio.gather(*(run(client, stream) for stream in streams))
            async with asyncio.timeout(10):  # the leavers' sequences stop with them
                metrics = await wait_until_idle(client)
            await asyncio.sleep(1)
            assert (await engine_metrics(client))["steps_total"] == metrics["steps_total"]
            assert (await client.get("/health")).status_code == 200
            assert metrics["kv_cache_usage_ratio"] == 0
    for stream in streams:
        if stream.leaves_after is None:
            check_whole(stream)
    # Nobody paid for the 60 x 4000 tokens: what leavers read, and some steps until they were known
    # to be gone.
    stayed = sum(s.max_tokens for s in streams if s.leaves_after is None)
    assert stayed <= metrics["generation_tokens_total"] < stayed + 60 * 200


def check_whole(stream: Stream) -> None:
    assert stream.data[-1] == "[DONE]" and stream.data.count("[DONE]") == 1
    *body, usage = stream.chunks
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in body]
    assert reasons[-1] == "length" and set(reasons[:-1]) <= {None}
    assert len({chunk["id"] for chunk in stream.chunks}) == 1
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == stream.max_tokens
