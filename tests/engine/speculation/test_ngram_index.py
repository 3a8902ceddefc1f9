"""Matches against a scan of the whole sequence."""

from hypothesis import given
from hypothesis import strategies as st

from engine.speculation import ngram_index
from engine.speculation.ngram_index import (
    MAX_LENGTH,
    MIN_LENGTH,
    Match,
    NgramIndex,
    continuation,
)

tokens = st.lists(st.integers(0, 3), max_size=60)


def scan(token_ids: list[int]) -> Match | None:
    """The longest match of the newest places, by looking at every place."""
    end = len(token_ids)
    places = [
        p
        for p in range(end - 1, MIN_LENGTH - 1, -1)
        if token_ids[p - MIN_LENGTH : p] == token_ids[end - MIN_LENGTH :]
    ]
    best = None
    for place in places[: ngram_index._NUM_CANDIDATES]:
        length = 0
        while (
            length < min(place, MAX_LENGTH)
            and token_ids[place - 1 - length] == token_ids[end - 1 - length]
        ):
            length += 1
        if best is None or length > best.length:
            best = Match(place, length)
    return best


@given(start=tokens, rest=st.lists(tokens, max_size=8))
def test_finds_what_a_scan_finds_however_the_sequence_grew(
    start: list[int], rest: list[list[int]]
) -> None:
    index = NgramIndex()
    token_ids: list[int] = []
    for more in [start, *rest]:
        token_ids += more
        assert index.find(token_ids) == scan(token_ids)


def test_a_longer_match_wins_over_a_newer_one() -> None:
    token_ids = [1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3]
    assert NgramIndex().find(token_ids) == Match(3, 3)


def test_a_token_without_earlier_company_has_no_match() -> None:
    assert NgramIndex().find([1, 2, 3, 4]) is None
    assert NgramIndex().find([1]) is None
    assert NgramIndex().find([]) is None


def test_a_long_prompt_is_taken_in_over_several_calls() -> None:
    token_ids = [5, 6] * ngram_index._MAX_NEW_TOKENS
    index = NgramIndex()
    assert index.find(token_ids) is None
    assert index.find(token_ids) == Match(len(token_ids) - 2, MAX_LENGTH)


def test_the_continuation_goes_on_repeating() -> None:
    token_ids = [1, 2, 3, 1, 2, 3]
    assert continuation(token_ids, 3, 2) == [1, 2]
    assert continuation(token_ids, 3, 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert continuation([4, 4], 1, 3) == [4, 4, 4]
