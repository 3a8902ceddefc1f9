"""A sequence that another engine goes on with says what it would have said, and ends the same."""

from collections.abc import Callable

import pytest

from engine.core import Engine
from engine.flight import Flight
from engine.messages import EngineRequest, Event, Finished, Grammar, TokenEvent
from tests.engine.grammars import InlineGrammars, text_of
from tests.engine.random_runner import random_engine, request_of
from tests.engine.toy_runner import expected_output, make_request, toy_engine

NUMBERS = Grammar(
    kind="json_schema",
    text='{"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string", '
    '"maxLength": 9}}, "required": ["n"]}, "minItems": 2, "maxItems": 4}',
)


def play(engine: Engine, flight: Flight, num_events: int = 1000) -> None:
    """Until the client has heard so much, or the end."""
    for event in engine.add(flight.request()):
        flight.take(event)
    num_heard = 0
    while num_heard < num_events and not flight.has_ended:
        events = engine.step()
        num_heard += len(events)
        for event in events:
            flight.take(event)


def told(flight: Flight) -> tuple[list[int], Finished, list[Event]]:
    events = [flight.events.get_nowait() for _ in range(flight.events.qsize())]
    *tokens, last = events
    assert isinstance(last, Finished)
    ids = [i for event in tokens if isinstance(event, TokenEvent) for i in event.token_ids]
    return ids, last, events


def undisturbed(make: Callable[[], Engine], request: EngineRequest) -> tuple[list[int], Finished]:
    flight = Flight(request)
    play(make(), flight)
    ids, last, _ = told(flight)
    return ids, last


REQUESTS = {
    "greedy": request_of("a", None, max_tokens=30, temperature=0.0),
    "sampled": request_of("a", None, max_tokens=30, seed=3, temperature=1.0, top_p=0.9),
    "penalties": request_of(
        "a",
        None,
        max_tokens=40,
        seed=4,
        temperature=0.7,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        presence_penalty=0.2,
    ),
    "min tokens": request_of("a", None, max_tokens=60, seed=5, min_tokens=30),
    "JSON": request_of("a", NUMBERS, max_tokens=300, seed=6, temperature=1.0),
    "JSON cut short": request_of("a", NUMBERS, max_tokens=40, seed=7, temperature=1.5),
    "logprobs": request_of("a", None, max_tokens=20, seed=8, logprobs=2, ignore_eos=True),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_an_engine_lost_anywhere(name: str) -> None:
    request = REQUESTS[name]
    expected, end = undisturbed(random_engine, request)
    assert len(expected) > 10
    for num_events in range(1, len(expected), 1 + len(expected) // 25):
        flight = Flight(request)
        play(random_engine(), flight, num_events)
        play(random_engine(), flight)
        ids, last, _ = told(flight)
        assert (ids, last.reason) == (expected, end.reason), num_events
        assert last.num_output_tokens == end.num_output_tokens
        assert last.stop_token_id == end.stop_token_id


def test_the_one_that_is_cut_short_is_completed() -> None:
    """Or the test above would say nothing of it."""
    expected, end = undisturbed(random_engine, REQUESTS["JSON cut short"])
    assert text_of(expected).endswith("]") and end.reason == "length"


def test_an_engine_lost_at_every_token() -> None:
    for request in (REQUESTS["JSON cut short"], REQUESTS["penalties"]):
        expected, end = undisturbed(random_engine, request)
        flight = Flight(request)
        while not flight.has_ended:
            play(random_engine(), flight, num_events=1)
        ids, last, _ = told(flight)
        assert (ids, last.reason) == (expected, end.reason)


def test_only_the_end_was_lost() -> None:
    engine, _ = toy_engine()
    flight = Flight(make_request("a", [1, 2, 3], max_tokens=4))
    flight.take(TokenEvent("a", expected_output([1, 2, 3], 4)))
    (end,) = engine.add(flight.request())
    assert end == Finished("a", "length", num_prompt_tokens=3, num_output_tokens=4)
    assert not engine.has_work


def test_only_the_end_of_a_grammar_was_lost() -> None:
    grammars = InlineGrammars(is_lazy=True)
    engine = random_engine(grammars)
    flight = Flight(request_of("a", Grammar(kind="regex", text="xy")))
    flight.take(TokenEvent("a", list(b"xy")))
    assert engine.add(flight.request()) == []
    grammars.finish()
    (end,) = engine.admit_compiled()
    assert isinstance(end, Finished) and end.reason == "stop" and end.num_output_tokens == 2
    assert not engine.has_work


def test_prompt_logprobs_come_once() -> None:
    request = request_of("a", None, max_tokens=6, prompt_logprobs=1, ignore_eos=True)
    flight = Flight(request)
    play(random_engine(), flight, num_events=3)
    play(random_engine(), flight)
    _, _, events = told(flight)
    with_them = [e for e in events if isinstance(e, TokenEvent) and e.prompt_logprobs is not None]
    assert len(with_them) == 1


def test_cached_tokens_are_of_the_prompt_alone() -> None:
    engine, _ = toy_engine(num_blocks=40)
    first = Flight(make_request("a", [1, 2, 3], max_tokens=30))
    play(engine, first)
    again = Flight(make_request("b", [1, 2, 3], max_tokens=30))
    again.take(TokenEvent("b", expected_output([1, 2, 3], 20)))
    play(engine, again)
    _, last, _ = told(again)
    assert last.num_cached_tokens == 3
    assert engine.stats().prefix_cache_hits <= engine.stats().prefix_cache_queries


def test_one_that_outgrew_the_cache_ends_with_length() -> None:
    engine, _ = toy_engine(num_blocks=4, max_model_len=400)
    flight = Flight(make_request("a", [1, 2, 3], max_tokens=300))
    flight.take(TokenEvent("a", expected_output([1, 2, 3], 20)))
    play(engine, flight)
    assert told(flight)[1].reason == "length"
