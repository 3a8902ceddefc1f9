"""Servers and engines that are apart, over a real Redis, with the real model.

loadtest/chaos_cluster.py does the same for longer.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.chaos_cluster import Plan, run
from loadtest.cluster import Cluster
from loadtest.servers import Limits

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


def test_engines_servers_and_redis_are_killed_under_mixed_streams(smollm2_path: Path) -> None:
    limits = Limits(num_threads=1)
    with Cluster(str(smollm2_path), limits, num_servers=2, num_engines=2) as cluster:
        plan = Plan(
            duration_s=20,
            engine_kill_s=7,
            server_kill_s=9,
            redis_restart_s=12,
            engine_restart_s=8,
            server_restart_s=10,
            num_streams=8,
            seed=2,
        )
        outcome = asyncio.run(run(cluster, plan))
    assert outcome.problems == []
    assert outcome.num_streams > 0
    assert outcome.num_engine_kills and outcome.num_server_kills and outcome.num_redis_restarts
    assert outcome.num_engine_restarts and outcome.num_server_restarts


@pytest.mark.parametrize("half", ["server", "engine"])
def test_a_half_needs_a_queue(half: str, smollm2_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("qwen-serve")), half]
    run = subprocess.run(
        [*command, "--model", str(smollm2_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == (
        "error: a server and an engine that are apart need a --queue that both can reach\n"
    )


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://", "redis://h/0#x"])
def test_a_bad_queue_is_refused(url: str) -> None:
    command = [str(Path(sys.executable).with_name("qwen-serve")), "serve", "--queue", url]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: bad value") and "--queue" in run.stderr


def test_a_password_is_not_shown() -> None:
    url = "redis://user:secret@h/0#x"
    command = [str(Path(sys.executable).with_name("qwen-serve")), "serve", "--queue", url]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "secret" not in run.stderr
