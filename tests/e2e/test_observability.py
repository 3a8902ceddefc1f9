"""Metrics, headers, log lines and traces of the command itself: two workers, a real model."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.e2e.real_server import RealServer, real_server
from tests.server.metric_samples import Samples, parse, value_of
from tests.server.otlp_receiver import Received, attributes_of, otlp_receiver
from tests.waiting import wait_until

pytestmark = pytest.mark.real_model

_TIMING = re.compile(r"[a-z]+;dur=\d+\.\d(, [a-z]+;dur=\d+\.\d)*")
NUM_EACH = 3
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Received]:
    with otlp_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def server(
    receiver: Received, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--served-model-name", "m", "--workers", "2", "--kv-cache-memory", "64MiB")
    observed = ("--vllm-metrics", "--otlp-endpoint", receiver.url)
    with real_server(folder, smollm2_path, *options, *observed) as running:
        yield running


@pytest.fixture(scope="module")
def responses(server: RealServer) -> list[httpx.Headers]:
    """Headers of answers, whole and streamed, each over a connection of its own."""
    headers = []
    for i in range(2 * NUM_EACH):
        with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            create = client.chat.completions.with_streaming_response.create
            is_stream: Any = i % 2 == 1
            with create(
                model="m", messages=MESSAGES, max_tokens=8, temperature=0, stream=is_stream
            ) as response:
                response.read()
                headers.append(response.headers)
    return headers


def scrape(server: RealServer) -> Samples:
    return parse(httpx.get(f"{server.url}/metrics").text)


def log_lines(server: RealServer) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "http_request"]


def test_the_headers_say_where_the_time_went(responses: list[httpx.Headers]) -> None:
    for i, headers in enumerate(responses):
        timing = headers["server-timing"]
        assert _TIMING.fullmatch(timing)
        names = [part.partition(";")[0] for part in timing.split(", ")]
        decode = [] if i % 2 else ["decode"]  # a stream's headers go out with the first token
        assert names == ["queue", "prefill", *decode, "total"]
    assert len({headers["x-request-id"] for headers in responses}) == len(responses)


def test_both_workers_are_in_every_scrape(
    server: RealServer, responses: list[httpx.Headers]
) -> None:
    for _ in range(4):
        samples = scrape(server)
        assert value_of(samples, "qwen_serve_requests_total") == len(responses)
        assert value_of(samples, "qwen_serve_requests_in_progress") == 0
        for name in ("queue_time", "prefill_time", "decode_time"):
            assert value_of(samples, f"qwen_serve_{name}_seconds_count") == len(responses)
        output = {"gen_ai_token_type": "output", "gen_ai_request_model": "m"}
        num_tokens = value_of(samples, "gen_ai_client_token_usage_sum", **output)
        assert num_tokens >= len(responses)
        assert value_of(samples, "vllm:request_generation_tokens_sum") == num_tokens
        assert value_of(samples, "vllm:e2e_request_latency_seconds_count") == len(responses)
        assert value_of(samples, "qwen_serve_engine_ready") == 1
        assert value_of(samples, "qwen_serve_engine_restarts_total") == 0
        assert value_of(samples, "qwen_serve_model_info", model_name="m") == 1
    engine = "qwen_serve_engine_generation_tokens_total"  # told twice a second
    assert wait_until(lambda: value_of(scrape(server), engine) == num_tokens)


def test_each_request_has_one_line(server: RealServer, responses: list[httpx.Headers]) -> None:
    counts = Counter(line["request_id"] for line in log_lines(server))
    for headers in responses:
        assert counts[headers["x-request-id"]] == 1
    assert set(counts.values()) == {1}


def test_each_request_has_one_span(
    server: RealServer, receiver: Received, responses: list[httpx.Headers]
) -> None:
    def spans() -> list[Any]:
        return [span for span in receiver.spans if span.name == "chat m"]

    assert wait_until(lambda: len(spans()) == len(responses))
    found = {attributes_of(span)["qwen_serve.request_id"] for span in spans()}
    assert found == {headers["x-request-id"] for headers in responses}
    of_logs = {line.get("trace_id") for line in log_lines(server)}
    assert {span.trace_id.hex() for span in spans()} <= of_logs
