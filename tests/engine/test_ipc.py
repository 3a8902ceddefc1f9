"""IpcClient against a real engine process over a real socket; the model is a toy."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from engine.ipc import IpcClient
from engine.messages import EngineStats, Event, Finished, TokenEvent
from tests.engine.toy_runner import expected_output, make_request

StartEngine = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # short: socket paths end at 107 bytes
        yield f"ipc://{Path(folder) / 'engine.sock'}"


@pytest.fixture
def start_engine(address: str) -> Iterator[StartEngine]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(delay_s: float = 0.001) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.engine.toy_process", address, str(delay_s)]
        processes.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@contextlib.asynccontextmanager
async def connected(address: str, **options: float) -> AsyncIterator[IpcClient]:
    client = IpcClient(address, **options)
    await client.start()
    try:
        yield client
    finally:
        await client.aclose()


async def collect(client: IpcClient, request_id: str, prompt: list[int], n: int) -> list[Event]:
    return [event async for event in client.generate(make_request(request_id, prompt, n))]


def tokens_of(events: list[Event]) -> list[int]:
    return [i for event in events if isinstance(event, TokenEvent) for i in event.token_ids]


async def idle_stats(client: IpcClient) -> EngineStats:
    """The first snapshot of an engine that has nothing to do."""
    while True:
        stats = client.stats()
        if stats.num_steps and stats.num_running == stats.num_waiting == 0:
            return stats
        await asyncio.sleep(0.05)


async def test_connects_before_the_engine_is_there_and_generates(
    address: str, start_engine: StartEngine
) -> None:
    client = IpcClient(address)
    starting = asyncio.create_task(client.start())
    await asyncio.sleep(0.2)
    assert client.health() is not None
    start_engine()
    info = await starting
    assert (info.backend, client.health()) == ("toy", None)
    events = await collect(client, "a", [1, 2, 3], 7)
    assert tokens_of(events) == expected_output([1, 2, 3], 7)
    assert isinstance(events[-1], Finished)
    await client.aclose()


async def test_many_requests_of_two_clients_do_not_mix(
    address: str, start_engine: StartEngine
) -> None:
    start_engine(0)
    async with connected(address) as one, connected(address) as two:
        prompts = [[i % 7, i % 11, i % 3] for i in range(60)]
        replies = await asyncio.gather(
            *(
                collect((one, two)[i % 2], str(i), prompt, 5 + i % 4)
                for i, prompt in enumerate(prompts)
            )
        )
    for i, events in enumerate(replies):
        assert tokens_of(events) == expected_output(prompts[i], 5 + i % 4)
        assert [isinstance(event, Finished) for event in events].count(True) == 1


async def test_closing_the_iterator_aborts_in_the_engine(
    address: str, start_engine: StartEngine
) -> None:
    start_engine()
    async with connected(address) as client:
        stream = client.generate(make_request("a", [1, 2, 3], 1500))
        async for event in stream:
            if isinstance(event, TokenEvent):
                break
        await stream.aclose()  # type: ignore[attr-defined]
        stats = await idle_stats(client)
        assert stats.num_free_blocks == stats.num_blocks
        assert stats.num_steps < 1000


async def test_a_cancelled_task_aborts_too(address: str, start_engine: StartEngine) -> None:
    start_engine()
    async with connected(address) as client:
        task = asyncio.create_task(collect(client, "a", [1, 2, 3], 1500))
        await asyncio.sleep(0.3)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        stats = await idle_stats(client)
        assert stats.num_steps < 1000


async def test_abort_by_id_ends_the_iterator(address: str, start_engine: StartEngine) -> None:
    start_engine()
    async with connected(address) as client:
        task = asyncio.create_task(collect(client, "a", [1, 2, 3], 1500))
        await asyncio.sleep(0.3)
        client.abort("a")
        client.abort("unknown")
        last = (await task)[-1]
        assert isinstance(last, Finished)
        assert last.reason == "abort"


async def test_a_client_that_dies_leaves_nothing_behind(
    address: str, start_engine: StartEngine
) -> None:
    start_engine()
    async with connected(address) as survivor:
        async with connected(address) as dying:
            stream = dying.generate(make_request("a", [1, 2, 3], 1500))
            await anext(stream)
            # the connection breaks without a word: no abort is sent
            dying._problem = "dead"
            dying._socket.disconnect(address)  # type: ignore[union-attr]
        stats = await idle_stats(survivor)
        assert stats.num_free_blocks == stats.num_blocks
        assert stats.num_steps < 1400


async def test_the_next_engine_goes_on_with_every_request(
    address: str, start_engine: StartEngine
) -> None:
    engine = start_engine()
    resumed: list[int] = []
    async with connected(address) as client, connected(address) as other:
        client.on_resume = resumed.append
        tasks = [
            asyncio.create_task(collect((client, other)[i % 2], str(i), [1, 2, i], 700))
            for i in range(6)
        ]
        for i in range(3):
            await asyncio.sleep(0.4)
            engine.kill()
            while client.health() is None or other.health() is None:
                await asyncio.sleep(0.01)
            late = asyncio.create_task(collect(client, f"late {i}", [7], 5))
            engine = start_engine()
            assert tokens_of(await late) == expected_output([7], 5)
        for i, events in enumerate(await asyncio.gather(*tasks)):
            assert tokens_of(events) == expected_output([1, 2, i], 700)
            (last,) = [event for event in events if isinstance(event, Finished)]
            assert (last, last.reason, last.num_output_tokens) == (events[-1], "length", 700)
        stats = await idle_stats(client)
        assert stats.num_free_blocks == stats.num_blocks
    assert len(resumed) == 3
    assert resumed[0] == 4  # three of the six are its own, and the late one


async def test_when_no_engine_comes_every_request_ends(
    address: str, start_engine: StartEngine
) -> None:
    engine = start_engine()
    async with connected(address, resume_timeout_s=0.5) as client:
        tasks = [asyncio.create_task(collect(client, str(i), [1, 2, 3], 1500)) for i in range(3)]
        await asyncio.sleep(0.3)
        assert 0 < client.silent_s() < 0.3
        engine.kill()
        for events in await asyncio.gather(*tasks):
            last = events[-1]
            assert isinstance(last, Finished)
            assert last.fault is not None
            assert last.fault.code == "engine_dead"
        assert client.silent_s() == 0  # it owes nothing
        (refused,) = await collect(client, "x", [1, 2, 3], 4)
        assert isinstance(refused, Finished)
        start_engine()
        while client.health() is not None:
            await asyncio.sleep(0.05)
        assert tokens_of(await collect(client, "y", [1, 2, 3], 4)) == expected_output([1, 2, 3], 4)


async def test_a_request_aborted_while_there_is_no_engine(
    address: str, start_engine: StartEngine
) -> None:
    engine = start_engine()
    async with connected(address) as client:
        task = asyncio.create_task(collect(client, "a", [1, 2, 3], 1500))
        await asyncio.sleep(0.3)
        engine.kill()
        while client.health() is None:
            await asyncio.sleep(0.01)
        client.abort("a")
        last = (await task)[-1]
        assert isinstance(last, Finished) and last.reason == "abort"
        start_engine()
        while client.health() is not None:
            await asyncio.sleep(0.05)
        assert tokens_of(await collect(client, "b", [1], 2)) == expected_output([1], 2)
        assert client.stats().generation_tokens <= 2


async def test_a_hung_engine_is_silent(address: str, start_engine: StartEngine) -> None:
    engine = start_engine()
    async with connected(address) as client:
        task = asyncio.create_task(collect(client, "a", [1, 2, 3], 500))
        await asyncio.sleep(0.3)
        engine.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.0)
        assert client.silent_s() > 0.5
        engine.send_signal(signal.SIGCONT)
        assert tokens_of(await task) == expected_output([1, 2, 3], 500)
        assert client.silent_s() == 0


async def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(
    address: str, start_engine: StartEngine
) -> None:
    start_engine()
    async with connected(address) as client:
        (last,) = await collect(client, "bad", [13], 4)
        assert isinstance(last, Finished)
        assert last.fault is not None
        assert (last.fault.code, "on fire" in last.fault.message) == ("internal", True)
        assert tokens_of(await collect(client, "a", [1, 2], 4)) == expected_output([1, 2], 4)


async def test_a_refused_request_is_one_event(address: str, start_engine: StartEngine) -> None:
    start_engine()
    async with connected(address) as client:
        (last,) = await collect(client, "a", [1] * 3000, 4)
        assert isinstance(last, Finished)
        assert last.fault is not None
        assert last.fault.code == "context_length_exceeded"
