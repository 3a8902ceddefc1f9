"""engine/flight.py: what another engine is asked to go on with."""

import pytest

from engine.flight import Flight
from engine.messages import Event, Finished, Progress, TokenEvent, TokenLogprobs
from tests.engine.toy_runner import make_request

LOGPROBS = TokenLogprobs(7, -0.5, [])


def events_of(flight: Flight) -> list[Event]:
    return [flight.events.get_nowait() for _ in range(flight.events.qsize())]


def test_a_request_without_output_is_submitted_as_it_was() -> None:
    request = make_request("a", [1, 2], prompt_logprobs=2)
    assert Flight(request).request() == request


def test_output_so_far_goes_with_it() -> None:
    flight = Flight(make_request("a", [1, 2], max_tokens=9, prompt_logprobs=2, seed=5))
    flight.take(TokenEvent("a", [7], None, [None, LOGPROBS]))
    flight.take(TokenEvent("a", [8, 9], closed_from=2))
    again = flight.request()
    assert again.progress == Progress([7, 8, 9], 2)
    assert again.prompt_token_ids == [1, 2]
    assert (again.sampling.max_tokens, again.sampling.seed) == (9, 5)
    assert again.sampling.prompt_logprobs is None  # they have been sent
    flight.take(TokenEvent("a", [10], closed_from=2))
    assert again.progress == Progress([7, 8, 9], 2), "a request must not change once it is sent"
    assert [event.token_ids for event in events_of(flight) if isinstance(event, TokenEvent)] == [
        [7],
        [8, 9],
        [10],
    ]


def test_nothing_follows_the_end() -> None:
    flight = Flight(make_request("a", [1]))
    flight.take(Finished("a", "stop"))
    flight.take(TokenEvent("a", [1]))
    flight.lose_engine()
    flight.give_up("no engine")
    assert events_of(flight) == [Finished("a", "stop")]


def test_an_aborted_request_ends_with_its_engine() -> None:
    flight = Flight(make_request("a", [1, 2]))
    flight.take(TokenEvent("a", [7]))
    flight.abort()
    flight.lose_engine()
    assert events_of(flight)[-1] == Finished("a", "abort", num_prompt_tokens=2, num_output_tokens=1)


@pytest.mark.parametrize("token_between", [True, False])
def test_engines_lost_in_a_row_without_a_token_are_limited(token_between: bool) -> None:
    flight = Flight(make_request("a", [1]))
    for _ in range(120):
        flight.lose_engine()
    if token_between:
        flight.take(TokenEvent("a", [7]))
    for _ in range(120):
        flight.lose_engine()
    assert flight.has_ended == (not token_between)
    if flight.has_ended:
        (last,) = events_of(flight)
        assert isinstance(last, Finished) and last.fault is not None
        assert last.fault.code == "engine_dead"
