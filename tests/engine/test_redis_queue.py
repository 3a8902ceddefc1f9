"""Servers and engines of a queue over a real Redis; the model is a toy whose output is known."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from engine.messages import Event, Finished, TokenEvent
from engine.redis_queue import frames
from engine.redis_queue.client import RedisClient
from engine.redis_queue.connection import connect
from engine.redis_queue.names import join_address, split_address
from tests.engine.toy_runner import expected_output, make_request
from tests.redis_server import RedisServer

Engine = subprocess.Popen[bytes]
StartEngine = Callable[..., Engine]


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def address(redis_server: RedisServer) -> str:
    return join_address(redis_server.url, "test")


@pytest.fixture
def start_engine(address: str) -> Iterator[StartEngine]:
    processes: list[Engine] = []

    def start(delay_s: float = 0.002, *more: str) -> Engine:
        command = [sys.executable, "-m", "tests.engine.toy_process", address, str(delay_s), *more]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[RedisClient]:
    client = RedisClient(address)
    await client.start()
    try:
        yield client
    finally:
        await client.aclose()


async def collect(client: RedisClient, request_id: str, prompt: list[int], n: int) -> list[Event]:
    return [event async for event in client.generate(make_request(request_id, prompt, n))]


def tokens_of(events: list[Event]) -> list[int]:
    return [i for event in events if isinstance(event, TokenEvent) for i in event.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def all_engines(client: RedisClient, count: int) -> None:
    """Wait until so many are known to be alive."""
    await until(lambda: len(client._engines.loads()) == count)


def check(events: list[Event], prompt: list[int], n: int, request_id: str) -> None:
    assert tokens_of(events) == expected_output(prompt, n)
    assert {event.id for event in events} == {request_id}
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert (end.reason, end.num_output_tokens) == ("length", n)


PROMPTS = [[i % 7, i % 11, i % 3] for i in range(40)]


async def stream_all(
    clients: list[RedisClient], n: int = 60
) -> "asyncio.Future[list[list[Event]]]":
    work = asyncio.gather(
        *(
            collect(clients[i % len(clients)], f"r{i}", prompt, n + i % 5)
            for i, prompt in enumerate(PROMPTS)
        )
    )
    await asyncio.sleep(0)
    return work


def check_all(replies: list[list[Event]], n: int = 60) -> None:
    for i, events in enumerate(replies):
        check(events, PROMPTS[i], n + i % 5, f"r{i}")


async def test_two_servers_and_two_engines_share_the_work(
    address: str, start_engine: StartEngine
) -> None:
    start_engine(), start_engine()
    async with connected(address) as one, connected(address) as two:
        await all_engines(one, 2)
        check_all(await (await stream_all([one, two])))
        await until(lambda: one.stats().num_running == one.stats().num_waiting == 0)
        finished = [stats.num_finished for stats in one._engines._last.values()]
        assert sum(finished) == len(PROMPTS)
        assert min(finished) > 0


async def test_a_killed_engine_s_requests_go_on_elsewhere(
    address: str, start_engine: StartEngine
) -> None:
    doomed = start_engine(0.01)
    start_engine(0.01)
    async with connected(address) as client:
        await all_engines(client, 2)
        work = await stream_all([client], 80)
        await until(lambda: client.stats().generation_tokens > 100)
        doomed.kill()
        check_all(await work, 80)
        assert client.health() is None


async def test_the_last_engine_s_requests_wait_for_the_next(
    address: str, start_engine: StartEngine
) -> None:
    doomed = start_engine(0.01)
    async with connected(address) as client:
        work = await stream_all([client], 80)
        await until(lambda: client.stats().generation_tokens > 100)
        doomed.kill()
        await until(lambda: client.health() is not None)
        late = asyncio.create_task(collect(client, "late", [1, 2], 5))
        start_engine()
        check_all(await work, 80)
        check(await late, [1, 2], 5, "late")


async def test_an_engine_that_leaves_hands_over_at_once(
    address: str, start_engine: StartEngine
) -> None:
    leaving = start_engine(0.01)
    start_engine(0.01)
    async with connected(address) as client:
        await all_engines(client, 2)
        work = await stream_all([client], 80)
        await until(lambda: client.stats().generation_tokens > 100)
        leaving.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.wait) == 0
        await until(lambda: len(client._engines.loads()) == 1)
        check_all(await work, 80)


@pytest.mark.parametrize("keeps_its_data", [True, False])
async def test_redis_restarts(
    address: str,
    start_engine: StartEngine,
    redis_server: RedisServer,
    keeps_its_data: bool,
    tmp_path: Path,
) -> None:
    start_engine(0.01), start_engine(0.01)
    async with connected(address) as client:
        await all_engines(client, 2)
        work = await stream_all([client], 120)
        await until(lambda: client.stats().generation_tokens > 100)
        redis_server.kill()
        late = asyncio.create_task(collect(client, "late", [1, 2], 5))
        await until(lambda: client.health() is not None)
        if not keeps_its_data:
            for path in (tmp_path / "appendonlydir").iterdir():
                path.unlink()
        await asyncio.to_thread(redis_server.start)
        check_all(await work, 120)
        check(await late, [1, 2], 5, "late")


async def test_redis_does_not_answer_for_ten_seconds(
    address: str, start_engine: StartEngine, redis_server: RedisServer
) -> None:
    start_engine(0.01), start_engine(0.01)
    async with connected(address) as client:
        await all_engines(client, 2)
        work = await stream_all([client], 120)
        await until(lambda: client.stats().generation_tokens > 100)
        redis_server.pause()
        await asyncio.sleep(10)
        redis_server.resume()
        check_all(await work, 120)


async def test_closing_the_iterator_aborts_in_the_engine(
    address: str, start_engine: StartEngine
) -> None:
    start_engine()
    async with connected(address) as client:
        stream = client.generate(make_request("a", [1, 2, 3], 1500))
        async for event in stream:
            assert isinstance(event, TokenEvent)
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await until(lambda: client.stats().num_finished == 1)
        assert client.stats().generation_tokens < 1500


async def test_abort_ends_a_stream_and_one_that_nobody_has_taken(
    address: str, start_engine: StartEngine
) -> None:
    doomed = start_engine()
    async with connected(address) as client:
        events = []
        async for event in client.generate(make_request("a", [1, 2, 3], 1500)):
            events.append(event)
            client.abort("a")
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "abort"
        doomed.kill()
        await until(lambda: client.health() is not None)
        waiting = asyncio.create_task(collect(client, "b", [1], 5))
        url, names = split_address(address)
        with connect(url) as store:
            await until(lambda: store.xlen(names.waiting) == 1)
            client.abort("b")
            (end,) = await waiting
            assert isinstance(end, Finished)
            assert end.reason == "abort"
            await until(lambda: store.xlen(names.waiting) == 0)


async def test_what_a_dead_server_had_is_aborted(address: str, start_engine: StartEngine) -> None:
    start_engine(0.01)
    doomed = RedisClient(address)
    await doomed.start()
    works = [asyncio.create_task(collect(doomed, f"d{i}", [i], 1900)) for i in range(3)]
    async with connected(address) as client:
        await until(lambda: client.stats().num_running == 3)
        for task in (*doomed._tasks, *works):  # as a process that is killed: it says nothing
            task.cancel()
        await until(lambda: client.stats().num_running == 0)
        assert client.stats().generation_tokens < 3 * 1900
        url, names = split_address(address)
        with connect(url) as store:
            assert store.hkeys(names.servers) == [client.name.encode()]
    await asyncio.gather(*works, return_exceptions=True)
    await doomed.aclose()


async def test_what_a_dead_server_had_waiting_is_removed(
    address: str, start_engine: StartEngine
) -> None:
    start_engine(0.01)
    doomed = RedisClient(address)
    await doomed.start()
    async with connected(address) as client:
        works = [asyncio.create_task(collect(doomed, f"d{i}", [i], 1900)) for i in range(150)]
        url, names = split_address(address)
        with connect(url) as store:
            await until(lambda: store.xlen(names.waiting) > 100)
            for task in (*doomed._tasks, *works):
                task.cancel()
            mine = asyncio.create_task(collect(client, "mine", [1, 2], 5))
            await until(lambda: store.xlen(names.waiting) == 0)
        check(await mine, [1, 2], 5, "mine")
    await asyncio.gather(*works, return_exceptions=True)
    await doomed.aclose()


async def test_a_prompt_goes_where_its_beginning_is_cached(
    address: str, start_engine: StartEngine
) -> None:
    start_engine(), start_engine(), start_engine()
    async with connected(address) as one, connected(address) as two:
        await all_engines(one, 3)
        await all_engines(two, 3)
        prefix = [i % 10 for i in range(300)]
        for i in range(6):  # through both servers
            client = (one, two)[i % 2]
            prompt = [*prefix, i]
            check(await collect(client, f"p{i}", prompt, 3), prompt, 3, f"p{i}")
            await until(lambda: not two._holders and not one._holders)
        await until(lambda: one.stats().num_finished == 6)
        busy = [stats for stats in one._engines._last.values() if stats.num_finished]
        assert len(busy) == 1
        assert busy[0].prefix_cache_hits > 5 * 256


async def test_what_no_engine_has_room_for_waits_in_the_queue(
    address: str, start_engine: StartEngine
) -> None:
    start_engine(0.005)
    async with connected(address) as client:
        room = next(iter(client._engines.loads().values())).max_num_seqs
        assert room < len(PROMPTS)
        work = await stream_all([client])
        await until(lambda: client.stats().num_waiting >= len(PROMPTS) - room)
        assert client.stats().num_running <= room
        check_all(await work)


async def test_an_engine_of_another_model_is_refused(
    address: str, start_engine: StartEngine
) -> None:
    start_engine()
    async with connected(address):
        other = start_engine(0.001, "1000")
        assert await asyncio.to_thread(other.wait) == 1
        assert other.stderr is not None
        assert b"context of 2000 tokens" in other.stderr.read()


async def test_foreign_entries_are_dropped(address: str, start_engine: StartEngine) -> None:
    start_engine()
    async with connected(address) as client:
        url, names = split_address(address)
        with connect(url) as store:
            (engine,) = client._engines.known
            for stream in (names.waiting, names.to_engine(engine), client._own):
                store.xadd(stream, {b"x": b"y"})
                store.xadd(stream, {frames.FIELD: b"\xc1"})
            store.hset(names.engines, "nobody", b"not a beat")
        check(await collect(client, "a", [1, 2, 3], 7), [1, 2, 3], 7, "a")
        assert client.health() is None


async def test_without_engines_for_long_requests_end(
    address: str, start_engine: StartEngine
) -> None:
    doomed = start_engine(0.01)
    client = RedisClient(address, resume_timeout_s=1)
    await client.start()
    work = asyncio.create_task(collect(client, "a", [1, 2, 3], 1500))
    await until(lambda: client.stats().num_running == 1)
    doomed.kill()
    events = await work
    assert isinstance(events[-1], Finished)
    assert events[-1].fault is not None
    assert events[-1].fault.code == "engine_dead"
    await client.aclose()
