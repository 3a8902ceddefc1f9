"""The fake keeps the EngineClient contract: one terminal event, abort, early close, death."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import cast

import pytest

from engine.client import EngineClient
from engine.errors import EngineDead, InvariantViolated
from engine.fake import FakeEngine, echo_script
from engine.messages import EngineRequest, Event, Fault, Finished, SamplingParams, TokenEvent

DEAD = Fault("engine_dead", "the engine process died")


def make_request(
    id: str = "a", prompt: list[int] | None = None, **sampling: object
) -> EngineRequest:
    params = SamplingParams(**{"max_tokens": 5, **sampling})  # type: ignore[arg-type]
    return EngineRequest(id=id, prompt_token_ids=prompt or [7, 8, 9], sampling=params)


def endless(request: EngineRequest) -> Iterator[Event | float]:
    while True:
        yield TokenEvent(request.id, [1])
        yield 0


def stuck(request: EngineRequest) -> Iterator[Event | float]:
    yield TokenEvent(request.id, [1])
    yield 3600.0


async def collect(engine: EngineClient, request: EngineRequest) -> tuple[list[int], Finished]:
    token_ids: list[int] = []
    ends: list[Finished] = []
    async for event in engine.generate(request):
        assert not ends, "an event after Finished"
        if isinstance(event, Finished):
            ends.append(event)
        else:
            token_ids += event.token_ids
    (end,) = ends
    return token_ids, end


async def test_default_script_repeats_the_prompt_until_max_tokens() -> None:
    engine = FakeEngine()
    token_ids, end = await collect(engine, make_request())
    assert token_ids == [7, 8, 9, 7, 8]
    assert end == Finished("a", "length", num_prompt_tokens=3, num_output_tokens=5)
    assert [r.id for r in engine.requests] == ["a"]
    assert engine.aborted == []
    assert engine.stats().num_running == 0
    assert engine.stats().generation_tokens == 5


async def test_default_script_honours_eos_stop_tokens_and_min_tokens() -> None:
    engine = FakeEngine(eos_token_ids=[9])
    token_ids, end = await collect(engine, make_request())
    assert (token_ids, end.reason, end.stop_token_id) == ([7, 8], "stop", 9)
    assert end.num_output_tokens == 3  # the stop token included
    token_ids, end = await collect(engine, make_request(ignore_eos=True))
    assert (token_ids, end.reason) == ([7, 8, 9, 7, 8], "length")
    token_ids, end = await collect(engine, make_request(stop_token_ids=(8,)))
    assert (token_ids, end.stop_token_id) == ([7], 8)
    token_ids, end = await collect(engine, make_request(min_tokens=3))
    assert (token_ids, end.stop_token_id) == ([7, 8, 7, 8], 9)
    token_ids, end = await collect(engine, make_request(prompt=[9], min_tokens=3))
    assert (token_ids, end.reason) == ([], "length")  # ends although it has only stop tokens to say


async def test_default_script_gives_the_logprobs_asked_for() -> None:
    request = make_request(max_tokens=1, logprobs=2, prompt_logprobs=1)
    first, second, _ = [event async for event in FakeEngine().generate(request)]
    assert isinstance(first, TokenEvent) and isinstance(second, TokenEvent)
    assert first.prompt_logprobs is not None and second.logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert [p.token_id for p in first.prompt_logprobs[1:] if p] == [8, 9]
    assert second.logprobs[0].token_id == 7
    assert len(second.logprobs[0].top) == 2
    assert second.logprobs[0].top[0] == (7, second.logprobs[0].logprob)


async def test_zero_max_tokens_only_ends() -> None:
    token_ids, end = await collect(FakeEngine(), make_request(max_tokens=0))
    assert (token_ids, end.reason) == ([], "length")


async def test_default_script_says_the_answer_it_was_given() -> None:
    engine = FakeEngine(script=echo_script([0], answer=[4, 5, 0]))
    token_ids, end = await collect(engine, make_request())
    assert (token_ids, end.reason, end.stop_token_id) == ([4, 5], "stop", 0)
    assert end.num_prompt_tokens == 3
    token_ids, end = await collect(engine, make_request(max_tokens=1))
    assert (token_ids, end.reason) == ([4], "length")


async def test_script_without_an_end_is_ended() -> None:
    engine = FakeEngine(script=lambda request: [TokenEvent(request.id, [1, 2])])
    token_ids, end = await collect(engine, make_request())
    assert (token_ids, end.reason, end.num_output_tokens) == ([1, 2], "stop", 2)


async def test_submits_at_the_first_iteration() -> None:
    engine = FakeEngine()
    stream = engine.generate(make_request())
    assert engine.requests == []
    await anext(stream)
    assert len(engine.requests) == 1
    await cast(AsyncGenerator[Event, None], stream).aclose()


async def test_closing_early_aborts_without_an_await() -> None:
    engine = FakeEngine(script=endless)
    stream = cast(AsyncGenerator[Event, None], engine.generate(make_request()))
    await anext(stream)
    assert engine.stats().num_running == 1
    with pytest.raises(StopIteration):  # driven by hand: any await inside would return instead
        stream.aclose().send(None)
    assert engine.aborted == ["a"]
    assert engine.stats().num_running == 0


async def test_cancelling_the_reader_aborts() -> None:
    engine = FakeEngine(script=stuck)
    reader = asyncio.create_task(collect(engine, make_request()))
    while not engine.stats().generation_tokens:
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert engine.aborted == ["a"]


@pytest.mark.parametrize("script", [endless, stuck])
async def test_abort_ends_the_stream_once(script: object) -> None:
    engine = FakeEngine(script=script)  # type: ignore[arg-type]
    reader = asyncio.create_task(collect(engine, make_request()))
    while not engine.stats().generation_tokens:
        await asyncio.sleep(0)
    engine.abort("a")
    engine.abort("a")
    engine.abort("unknown")
    token_ids, end = await reader
    assert end.reason == "abort"
    assert end.num_output_tokens == len(token_ids)
    assert engine.aborted == ["a"]


async def test_closing_after_the_end_aborts_nothing() -> None:
    engine = FakeEngine()
    stream = cast(AsyncGenerator[Event, None], engine.generate(make_request()))
    async for event in stream:
        if isinstance(event, Finished):
            break
    await stream.aclose()
    assert engine.aborted == []


async def test_fail_ends_everything_running_and_death_lasts() -> None:
    engine = FakeEngine(script=stuck)
    readers = [asyncio.create_task(collect(engine, make_request(i))) for i in "abc"]
    while engine.stats().generation_tokens < 3:
        await asyncio.sleep(0)
    engine.fail(DEAD)
    for reader in readers:
        _, end = await reader
        assert (end.reason, end.fault) == ("error", DEAD)
    assert engine.health() == DEAD.message
    token_ids, end = await collect(engine, make_request("late"))
    assert (token_ids, end.fault) == ([], DEAD)
    with pytest.raises(EngineDead, match="died"):
        await engine.start()
    assert engine.aborted == []
    engine.revive()
    assert engine.health() is None
    assert await engine.start() == engine.info


async def test_other_faults_leave_it_healthy() -> None:
    engine = FakeEngine(script=stuck)
    reader = asyncio.create_task(collect(engine, make_request()))
    while not engine.stats().generation_tokens:
        await asyncio.sleep(0)
    fault = Fault("numerical_error", "NaN in the logits")
    engine.fail(fault)
    assert (await reader)[1].fault == fault
    assert engine.health() is None


async def test_aclose_aborts_what_runs() -> None:
    engine = FakeEngine(script=stuck)
    reader = asyncio.create_task(collect(engine, make_request()))
    while not engine.stats().generation_tokens:
        await asyncio.sleep(0)
    await engine.aclose()
    assert (await reader)[1].reason == "abort"


async def test_streams_interleave() -> None:
    order: list[str] = []

    async def read(id: str) -> None:
        async for _ in engine.generate(make_request(id, max_tokens=2)):
            order.append(id)

    engine = FakeEngine()
    await asyncio.gather(read("a"), read("b"))
    assert order == ["a", "b"] * 3


async def test_running_id_twice_is_refused() -> None:
    engine = FakeEngine(script=endless)
    stream = cast(AsyncGenerator[Event, None], engine.generate(make_request()))
    await anext(stream)
    with pytest.raises(InvariantViolated, match="already running"):
        await anext(engine.generate(make_request()))
    await stream.aclose()
    assert engine.aborted == ["a"]
