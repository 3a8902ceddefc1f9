"""When a request ends, and with what; random load is in test_core_properties.py."""

import time
from typing import Any

import msgspec
import pytest

from engine.errors import RequestRejected
from engine.messages import (
    EngineRequest,
    Event,
    Fault,
    Finished,
    Progress,
    SamplingParams,
    TokenEvent,
)
from engine.results import ChunkResult
from tests.engine.toy_runner import VOCAB_SIZE, expected_output, make_request, toy_engine


def drain(engine: object) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:  # type: ignore[attr-defined]
        events += engine.step()  # type: ignore[attr-defined]
    return events


def test_generates_up_to_max_tokens() -> None:
    engine, _ = toy_engine()
    engine.add(make_request("a", [1, 2, 3], max_tokens=4))
    *tokens, last = drain(engine)
    assert [event.token_ids[0] for event in tokens if isinstance(event, TokenEvent)] == (
        expected_output([1, 2, 3], 4)
    )
    assert last == Finished("a", "length", num_prompt_tokens=3, num_output_tokens=4)


def test_the_first_token_says_how_long_it_took() -> None:
    began = time.perf_counter()
    engine, _ = toy_engine(max_num_batched_tokens=2)
    engine.add(make_request("a", [1, 2, 3], max_tokens=3))
    first, second, _, _ = drain(engine)
    elapsed = time.perf_counter() - began
    assert isinstance(first, TokenEvent) and isinstance(second, TokenEvent)
    assert first.timing is not None
    assert first.timing.queue_s >= 0
    assert first.timing.prefill_s > 0  # two steps
    assert first.timing.queue_s + first.timing.prefill_s < elapsed
    assert second.timing is None


def test_a_resumed_sequence_has_had_its_first_token() -> None:
    engine, _ = toy_engine()
    request = make_request("a", [1, 2, 3], max_tokens=4)
    known = expected_output([1, 2, 3], 2)
    engine.add(msgspec.structs.replace(request, progress=Progress(known)))
    timings = [event.timing for event in drain(engine) if isinstance(event, TokenEvent)]
    assert timings == [None, None]


def test_a_stop_token_ends_it_and_is_only_in_finished() -> None:
    output = expected_output([1, 2, 3], 6)
    engine, _ = toy_engine(eos_token_ids=(output[3],))
    engine.add(make_request("a", [1, 2, 3], max_tokens=6))
    events = drain(engine)
    assert len(events) == 4
    assert events[-1] == Finished(
        "a", "stop", num_prompt_tokens=3, num_output_tokens=4, stop_token_id=output[3]
    )


def test_ignore_eos_goes_on_but_stop_token_ids_still_stop() -> None:
    output = expected_output([1, 2, 3], 6)
    engine, _ = toy_engine(eos_token_ids=(output[1],))
    engine.add(
        make_request("a", [1, 2, 3], max_tokens=6, ignore_eos=True, stop_token_ids=(output[4],))
    )
    last = drain(engine)[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.stop_token_id, last.num_output_tokens) == ("stop", output[4], 5)


@pytest.mark.parametrize(
    ("sampling", "expected", "reason"),
    [
        ({"stop_token_ids": (12,)}, [10, 11], "stop"),
        ({"stop_token_ids": (10,)}, [], "stop"),
        ({"max_tokens": 2}, [10, 11], "length"),
        ({"max_tokens": 3, "stop_token_ids": (12,)}, [10, 11], "stop"),
    ],
)
def test_whatever_a_step_gives_nothing_comes_behind_an_end(
    monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any], expected: list[int], reason: str
) -> None:
    engine, runner = toy_engine()
    monkeypatch.setattr(
        runner, "run", lambda chunks: [ChunkResult([10, 11, 12, 13]) for _ in chunks]
    )
    engine.add(make_request("a", [1, 2, 3], **{"max_tokens": 9, **sampling}))
    *events, last = engine.step()
    assert [event.token_ids for event in events if isinstance(event, TokenEvent)] == (
        [expected] if expected else []
    )
    assert isinstance(last, Finished) and last.reason == reason
    assert last.num_output_tokens == len(expected) + (reason == "stop")
    assert engine.stats().generation_tokens == last.num_output_tokens
    engine.scheduler.block_manager.check_idle()


def test_the_context_ends_it_with_length() -> None:
    engine, _ = toy_engine(max_model_len=6)
    engine.add(make_request("a", [1, 2, 3], max_tokens=50))
    last = drain(engine)[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.num_output_tokens) == ("length", 3)


def test_outgrowing_the_cache_ends_it_with_length() -> None:
    engine, _ = toy_engine(num_blocks=2, block_size=4)
    engine.add(make_request("a", [1, 2, 3], max_tokens=20))
    last = drain(engine)[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.num_output_tokens) == ("length", 6)


def test_zero_tokens_compute_the_prompt_only() -> None:
    engine, runner = toy_engine()
    engine.add(make_request("a", [1, 2, 3], max_tokens=0))
    assert drain(engine) == [Finished("a", "length", num_prompt_tokens=3)]
    assert runner.num_tokens_per_step == [3]


def test_abort_frees_at_once_and_costs_no_further_step() -> None:
    engine, runner = toy_engine()
    engine.add(make_request("a", [1, 2, 3]))
    engine.step()
    (event,) = engine.abort("a")
    assert event == Finished("a", "abort", num_prompt_tokens=3, num_output_tokens=1)
    assert not engine.has_work
    assert engine.abort("a") == []
    assert len(runner.num_tokens_per_step) == 1


def test_nan_fails_its_own_sequence_only() -> None:
    engine, runner = toy_engine()
    runner.nan_tokens = {49}
    engine.add(make_request("bad", [49, 2, 3]))
    engine.add(make_request("good", [1, 2, 3], max_tokens=3))
    finished = {event.id: event for event in drain(engine) if isinstance(event, Finished)}
    assert finished["bad"].fault == Fault("numerical_error", "The model's output is NaN.")
    assert finished["good"].reason == "length"
    engine.add(make_request("again", [49, 2, 3, 4, 5, 6]))
    engine.step()
    assert engine.stats().prefix_cache_hits == 0


@pytest.mark.parametrize(
    "request_",
    [
        make_request("a", []),
        make_request("a", [VOCAB_SIZE]),
        make_request("a", [-1]),
        EngineRequest(
            id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1, logit_bias={VOCAB_SIZE: 1.0}),
        ),
    ],
)
def test_refuses_what_makes_no_sense(request_: EngineRequest) -> None:
    engine, _ = toy_engine()
    with pytest.raises(RequestRejected) as refused:
        engine.add(request_)
    assert refused.value.fault.code == "invalid_request"
    assert not engine.has_work


def test_an_id_in_use_is_refused_and_disturbs_nothing() -> None:
    engine, _ = toy_engine()
    engine.add(make_request("a", [1, 2, 3], max_tokens=2))
    with pytest.raises(RequestRejected):
        engine.add(make_request("a", [4]))
    assert isinstance(drain(engine)[-1], Finished)


def test_stats_count_computed_prompt_tokens_and_hits() -> None:
    engine, _ = toy_engine()
    engine.add(make_request("a", [1, 2, 3, 4, 5, 6], max_tokens=2))
    drain(engine)
    engine.add(make_request("b", [1, 2, 3, 4, 5, 6], max_tokens=2))
    drain(engine)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (6 + 2, 4)
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (12, 4)
    assert (stats.num_free_blocks, stats.num_running) == (stats.num_blocks, 0)
