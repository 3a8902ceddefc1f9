"""The number of tasks in /metrics, which shows what a server process does not let go of."""

import asyncio

import httpx

from tests.server.small_app import client_of, small_state


async def num_tasks(client: httpx.AsyncClient) -> int:
    text = (await client.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith("qwen_serve_event_loop_tasks")]
    return int(float(line.split()[1]))


async def test_tasks_are_counted_while_they_run() -> None:
    async with client_of(small_state()) as client:
        before = await num_tasks(client)
        assert before >= 1
        others = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(3)]
        assert await num_tasks(client) == before + 3
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert await num_tasks(client) == before
