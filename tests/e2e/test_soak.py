"""A short soak of the real server: clients of every kind, and nothing that they leave behind."""

import asyncio
from pathlib import Path

import pytest

from loadtest.servers import Limits, Server, our_recipe
from loadtest.soak import run

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


def test_nothing_is_left_behind(smollm2_path: Path) -> None:
    options = ("--max-waiting", "12", "--kv-cache-memory", "64MiB")
    limits = Limits(max_model_len=1024, max_num_seqs=8)
    with Server.start(our_recipe(str(smollm2_path), limits, options=options)) as server:
        report = asyncio.run(
            run(server, seconds=12, round_s=4, num_clients=12, seed=3, command="a test")
        )
    assert report.problems == []
    assert len(report.ended) >= 5 and sum(report.ended.values()) >= 24
    assert len(report.samples) >= 2
    assert all(sample.values["blocks in use"] == 0 for sample in report.samples)
    for name in ("tasks", "files worker", "files engine", "threads engine"):
        assert len({sample.values[name] for sample in report.samples}) == 1, name
