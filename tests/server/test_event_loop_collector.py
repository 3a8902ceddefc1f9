"""The number of tasks in /metrics, which shows what a server process does not let go of."""

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from server.event_loop_collector import EventLoopCollector
from server.metrics import Metrics
from tests.server.small_app import client_of, small_state


def tasks_in(text: str) -> int:
    (line,) = [line for line in text.splitlines() if line.startswith("qwen_serve_event_loop_tasks")]
    return int(float(line.split()[1]))


async def test_tasks_are_counted_while_they_run() -> None:
    registry = CollectorRegistry()
    registry.register(EventLoopCollector())
    before = tasks_in(generate_latest(registry).decode())
    others = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(3)]
    assert tasks_in(generate_latest(registry).decode()) == before + 3
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert tasks_in(generate_latest(registry).decode()) == before


async def test_metrics_have_it() -> None:
    state = small_state()
    async with client_of(state) as client:
        assert tasks_in((await client.get("/metrics")).text) >= 1


def test_without_a_loop_there_are_none() -> None:
    state = small_state()
    metrics = Metrics("m", state.engine)
    assert tasks_in(metrics.render()[0].decode()) == 0
