"""One choice: stop strings, held logprobs and counts, for every way of splitting tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import (
    EngineRequest,
    Event,
    Finished,
    FinishReason,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from protocol.errors import EngineUnavailable, Internal
from server.choice import Choice, Delta
from server.output_text import TextOptions
from tests.server.scripted_app import ids_of
from tests.server.small_app import END, byte_tokenizer

TOKENIZER = byte_tokenizer()


def token_event(token_ids: list[int], first: int = 0) -> TokenEvent:
    logprobs = [
        TokenLogprobs(token_id, -first - i - 1.0, []) for i, token_id in enumerate(token_ids)
    ]
    return TokenEvent("r", token_ids, logprobs)


def finished(reason: FinishReason = "stop", num_output_tokens: int = 0) -> Finished:
    return Finished("r", reason, num_cached_tokens=3, num_output_tokens=num_output_tokens)


def choice(*stops: str, min_tokens: int = 0, **options: Any) -> Choice:
    sampling = SamplingParams(max_tokens=100, min_tokens=min_tokens)
    request = EngineRequest(id="r", prompt_token_ids=[1], sampling=sampling)
    return Choice(request, TOKENIZER, TextOptions(stops, **options))


def feed(one: Choice, *events: Event) -> list[Delta]:
    return [delta for event in events if (delta := one.feed(event)) is not None]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_text_then_finish() -> None:
    one = choice()
    deltas = feed(one, token_event(ids_of("he")), token_event(ids_of("y")), finished("length", 3))
    assert [delta.text for delta in deltas] == ["he", "y", ""]
    assert [delta.finish_reason for delta in deltas] == [None, None, "length"]
    assert (one.num_output_tokens, one.num_cached_tokens, one.has_ended) == (3, 3, True)


def test_parts_of_a_character_wait() -> None:
    one = choice()
    first, *rest = ids_of("é")
    assert one.feed(token_event([first])) is None
    delta = one.feed(token_event(rest, 1))
    assert delta is not None and delta.text == "é"
    assert [(placed.offset, placed.logprobs.logprob) for placed in delta.logprobs] == [
        (0, -1.0),
        (0, -2.0),
    ]


def test_a_character_that_never_ends() -> None:
    deltas = feed(choice(), token_event(ids_of("é")[:1]), finished("length", 1))
    assert text_of(deltas) == "\ufffd"
    assert len(deltas[-1].logprobs) == 1


def test_stop_string_across_events() -> None:
    one = choice("STOP")
    deltas = feed(
        one, token_event(ids_of("aS")), token_event(ids_of("T")), token_event(ids_of("OPx"))
    )
    assert [delta.text for delta in deltas] == ["a", ""]
    assert deltas[-1].finish_reason == "stop"
    assert one.num_output_tokens == 5  # however many came with it in one step
    assert not one.has_ended
    assert feed(one, token_event(ids_of("yz")), finished("abort", 8)) == []
    assert (one.num_output_tokens, one.num_cached_tokens, one.has_ended) == (5, 3, True)


def test_a_false_start_is_released_with_its_logprobs() -> None:
    one = choice("STOP")
    deltas = feed(one, token_event(ids_of("aST")), token_event(ids_of("x"), 3), finished())
    assert [(delta.text, len(delta.logprobs)) for delta in deltas] == [
        ("a", 1),
        ("STx", 3),
        ("", 0),
    ]
    assert [placed.offset for placed in deltas[1].logprobs] == [1, 2, 3]


def test_what_is_held_at_the_end_is_text() -> None:
    deltas = feed(choice("STOP"), token_event(ids_of("aSTO")), finished("length", 4))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("aSTO", "length")
    assert sum(len(delta.logprobs) for delta in deltas) == 4


def test_a_stop_found_at_the_end() -> None:
    """ "ab" is complete, but "xaby" starts before it and could still have come."""
    deltas = feed(choice("ab", "xaby"), token_event(ids_of("-xab")), finished("length", 4))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("-x", "stop")
    assert sum(len(delta.logprobs) for delta in deltas) == 2


def test_a_stop_that_the_end_completes() -> None:
    deltas = feed(choice("\ufffd"), token_event(ids_of("aé")[:2]), finished("length", 2))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("a", "stop")


def test_include_stop() -> None:
    deltas = feed(choice("ST", include_stop=True), token_event(ids_of("aSTx")))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("aST", "stop")
    assert len(deltas[-1].logprobs) == 3


def test_stops_count_after_min_tokens() -> None:
    deltas = feed(choice("x", min_tokens=3), token_event(ids_of("xaxbx")))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("xa", "stop")


def test_special_tokens() -> None:
    tokens = [*ids_of("a"), END, *ids_of("b")]
    assert text_of(feed(choice(), token_event(tokens), finished())) == "ab"
    kept = feed(choice(skip_special_tokens=False), token_event(tokens), finished())
    assert text_of(kept) == "a<|end|>b"


def test_an_abort_of_the_engine() -> None:
    with pytest.raises(EngineUnavailable):
        choice().feed(finished("abort"))


def test_an_error_without_a_fault() -> None:
    with pytest.raises(Internal):
        choice().feed(finished("error"))


def test_mean_logprob() -> None:
    one = choice()
    assert one.mean_logprob == float("-inf")
    feed(one, token_event(ids_of("abc")), finished("length", 3))
    assert one.mean_logprob == pytest.approx(-2.0)


@given(
    st.text(alphabet="abé巴S", max_size=12),
    st.lists(st.text(alphabet="abéS", min_size=1, max_size=3), max_size=3),
    st.data(),
)
def test_any_split_gives_the_same(text: str, stops: list[str], data: st.DataObject) -> None:
    """The result is that of cutting the whole text at the first stop, if no stop hides another."""
    tokens = ids_of(text)
    whole = choice(*stops)
    expected = feed(whole, token_event(tokens), finished("length", len(tokens)))
    one = choice(*stops)
    deltas, position = [], 0
    while position < len(tokens):
        size = data.draw(st.integers(1, 4))
        deltas += feed(one, token_event(tokens[position : position + size], position))
        position += size
    deltas += feed(one, finished("length", len(tokens)))
    assert text_of(deltas) == text_of(expected)
    assert [placed for delta in deltas for placed in delta.logprobs] == [
        placed for delta in expected for placed in delta.logprobs
    ]
    starts = [text.find(stop) for stop in stops if stop in text]
    assert text_of(deltas) == text[: min(starts, default=len(text))]
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop" if starts else "length"]
