"""Stop strings: against a naive search of the whole text, for every way of splitting it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.stops import StopMatcher

_TEXTS = st.text(alphabet="ab<|é", max_size=14)
_STOPS = st.lists(st.text(alphabet="ab<|é", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """First start wins, then the shortest."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


def run(pieces: list[str], matcher: StopMatcher) -> str:
    return "".join([*map(matcher.feed, pieces), matcher.flush()])


def splits(text: str) -> list[list[str]]:
    """The whole, one character at a time, and cut in two at every offset."""
    return [[text], list(text), *([text[:i], text[i:]] for i in range(len(text) + 1))]


@given(_TEXTS, _STOPS)
def test_every_split_equals_a_search_of_the_whole_text(text: str, stops: list[str]) -> None:
    for pieces in splits(text):
        matcher = StopMatcher(stops)
        assert (run(pieces, matcher), matcher.matched) == naive(text, stops)


@given(st.lists(_TEXTS, max_size=6), _STOPS)
def test_any_pieces(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    assert (run(pieces, matcher), matcher.matched) == naive("".join(pieces), stops)


@given(_TEXTS, _STOPS)
def test_include_stop_keeps_it(text: str, stops: list[str]) -> None:
    expected, stop = naive(text, stops)
    assert run(list(text), StopMatcher(stops, include_stop=True)) == expected + (stop or "")


@given(_TEXTS, _STOPS)
def test_holds_exactly_the_longest_suffix_that_can_become_a_stop(
    text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    sent = ""
    for end, character in enumerate(text, start=1):
        sent += matcher.feed(character)
        if any(stop in text[:end] for stop in stops):
            return
        held = text[:end][len(sent) :]
        possible = [
            text[i:end] for i in range(end) if any(s.startswith(text[i:end]) for s in stops)
        ]
        assert held == max(possible, key=len, default="")


@pytest.mark.parametrize(
    ("text", "stops", "sent", "matched"),
    [
        ("aaab", ["aab"], "a", "aab"),  # the stop's own prefix repeats
        ("xabcd", ["abcd", "bc"], "x", "abcd"),  # a stop inside a stop: the first start wins
        ("xabce", ["abcd", "bc"], "xa", "bc"),  # ... unless it does not complete
        ("xabc", ["abcd", "bc"], "xa", "bc"),  # ... also when the text just ends
        ("abcd", ["abc", "ab"], "", "ab"),  # equal starts: the one that completes first
        ("a\nObservation:", ["\nObservation:", "Observation"], "a", "\nObservation:"),
        ("no stop", [], "no stop", None),
        ("", ["a"], "", None),
    ],
)
def test_examples(text: str, stops: list[str], sent: str, matched: str | None) -> None:
    for pieces in splits(text):
        matcher = StopMatcher(stops)
        assert run(pieces, matcher) == sent
        assert matcher.matched == matched


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["."])
    assert matcher.feed("one. two") == "one"
    assert matcher.matched == "."
    assert matcher.feed(" three") == ""
    assert matcher.flush() == ""


def test_flush_ends_only_once() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.feed("xab") == "x"
    assert matcher.flush() == "ab"
    assert matcher.flush() == ""
    assert matcher.matched is None


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
