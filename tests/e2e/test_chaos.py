"""Streams outlive a killed engine, through the real server and the real model, token for token.

loadtest/chaos.py does the same with hundreds of kills.
"""

import asyncio
from pathlib import Path

import httpx
import pytest

from loadtest.chaos import Outcome, Reply, run
from loadtest.chaos_requests import requests
from loadtest.servers import Limits, Server, our_recipe
from tests.server.metric_samples import parse, value_of

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


def test_engines_are_killed_under_mixed_streams(smollm2_path: Path) -> None:
    with Server.start(our_recipe(str(smollm2_path), Limits())) as server:
        outcome = asyncio.run(run(server, num_kills=5, num_streams=16, seed=1))
        page = httpx.get(f"{server.endpoint.url.removesuffix('/v1')}/metrics")
    samples = parse(page.text)
    assert outcome.problems == []
    assert outcome.num_kills == 5 and outcome.num_streams >= 16
    assert max(outcome.gaps_s) > 1.0  # they did wait for an engine
    assert value_of(samples, "qwen_serve_engine_restarts_total") == 5
    assert value_of(samples, "qwen_serve_resumed_requests_total") >= 5


def test_a_difference_is_seen() -> None:
    reply, other = Reply(completion_tokens=1), Reply(completion_tokens=2)
    assert not reply.equals(other) and reply.equals(Reply(completion_tokens=1))
    assert not Reply(error="no").equals(Reply(error="no"))
    assert Outcome(problems=["a"]).lines()[0].endswith("different: 1")


def test_requests_are_the_same_for_a_seed() -> None:
    assert requests(3, 40) == requests(3, 40) != requests(4, 40)
    assert len({str(sorted(body)) for _, body in requests(3, 40)}) >= 8
