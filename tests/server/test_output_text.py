"""Tokens to reasoning and content: stop strings, counts and what is settled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.reasoning import Parted, ThinkingStart, find_markers
from server.output_text import OutputText, TextOptions
from tests.protocol.thinking_templates import HYBRID, thinking_tokenizer

TOKENIZER = thinking_tokenizer()
INSIDE, OUTSIDE, FREE = ThinkingStart.INSIDE, ThinkingStart.OUTSIDE, ThinkingStart.FREE


def output(
    *stops: str, start: ThinkingStart = FREE, include_stop: bool = False, min_tokens: int = 0
) -> OutputText:
    markers = find_markers(HYBRID, TOKENIZER)
    assert markers is not None
    options = TextOptions(stops, include_stop, thinking=(markers, start))
    return OutputText(TOKENIZER, options, min_tokens)


def run(one: OutputText, text: str) -> Parted:
    results = []
    for token_id in TOKENIZER.encode(text, parse_special=True):
        results.append(one.feed(token_id))
        if one.is_stopped:
            break
    else:
        results.append(one.flush())
    return Parted("".join(r.reasoning for r in results), "".join(r.content for r in results))


@pytest.mark.parametrize(
    ("start", "text", "expected", "num_reasoning"),
    [
        (FREE, "Hi", Parted("", "Hi"), 0),
        (FREE, "", Parted(), 0),
        (FREE, "\n", Parted("", "\n"), 0),
        (FREE, "<think>\nab\n</think>\n\nHi", Parted("ab", "Hi"), 6),
        (FREE, "<think>\n\n</think>\n\nHi", Parted("", "Hi"), 4),
        (FREE, "<think>ab", Parted("ab"), 3),
        (INSIDE, "ab</think>\nHi", Parted("ab", "Hi"), 3),
        (INSIDE, "ab\n", Parted("ab\n"), 3),
        (INSIDE, "</think>Hi", Parted("", "Hi"), 1),
        (INSIDE, "é</think>é</think>", Parted("é", "é</think>"), 3),
        (OUTSIDE, "a<think>b</think>", Parted("", "a<think>b</think>"), 0),
    ],
)
def test_parted_and_counted(
    start: ThinkingStart, text: str, expected: Parted, num_reasoning: int
) -> None:
    one = output(start=start)
    assert run(one, text) == expected
    assert one.num_reasoning_tokens == num_reasoning
    assert one.num_settled == one.num_fed == len(text)


def test_stop_strings_are_for_the_content() -> None:
    one = output("STOP", "\n\n")
    assert run(one, "<think>\na STOP\n\nb\n</think>\n\nAn answer STOP x") == Parted(
        "a STOP\n\nb", "An answer "
    )
    assert one.is_stopped
    kept = output("STOP", include_stop=True)
    assert run(kept, "<think>STOP</think>a STOP") == Parted("STOP", "a STOP")


def test_a_stop_string_does_not_reach_over_the_markers() -> None:
    assert run(output("ab"), "<think>a</think>b") == Parted("a", "b")
    assert run(output("</think>"), "<think>a</think>b</think>c") == Parted("a", "b")


def test_stop_strings_count_after_min_tokens() -> None:
    assert run(output("x", min_tokens=5), "<think>x</think>xyx") == Parted("x", "xy")


def test_markers_that_are_control_tokens() -> None:
    special = thinking_tokenizer(is_special=True)
    markers = find_markers("", special)
    assert markers is not None
    one = OutputText(special, TextOptions(thinking=(markers, FREE)), 0)
    ids = special.encode("<think>é</think>Hi<|im_end|>", parse_special=True)
    parts = [one.feed(token_id) for token_id in ids]
    assert "".join(part.reasoning for part in parts) == "é"
    assert "".join(part.content for part in parts) == "Hi"
    assert one.num_reasoning_tokens == 4


def test_a_character_that_a_marker_breaks_off() -> None:
    special = thinking_tokenizer(is_special=True)
    markers = find_markers("", special)
    assert markers is not None
    one = OutputText(special, TextOptions(thinking=(markers, INSIDE)), 0)
    first, _ = special.encode("é", parse_special=True)
    assert one.feed(first) == Parted()
    assert one.feed(special.special_tokens["</think>"]) == Parted("\ufffd")


pieces = st.sampled_from(["<think>", "</think>", "\n", "<", "a", "é", "S", "T", "</thi"])


@given(st.lists(pieces, max_size=12), st.sampled_from(list(ThinkingStart)), st.booleans())
@settings(max_examples=200)
def test_settled_grows_to_the_end(texts: list[str], start: ThinkingStart, has_stop: bool) -> None:
    """Every character of the output is settled once, in order; all of them unless stopped."""
    one = output(*(["ST"] if has_stop else []), start=start)
    settled = [0]
    for token_id in TOKENIZER.encode("".join(texts), parse_special=True):
        one.feed(token_id)
        settled.append(one.num_settled)
        if one.is_stopped:
            break
    else:
        one.flush()
        settled.append(one.num_settled)
        assert one.is_stopped or one.num_settled == one.num_fed
    assert settled == sorted(settled)
    assert settled[-1] <= one.num_fed
