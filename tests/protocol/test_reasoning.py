"""Thinking parted from the answer: equal to cutting the whole text, however the text is split."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.reasoning import (
    Parted,
    ReasoningParser,
    ThinkingMarkers,
    ThinkingStart,
    find_markers,
    thinking_start,
)
from protocol.tokenizer import Tokenizer
from tests.protocol.thinking_templates import ALWAYS, HYBRID, NEVER, thinking_tokenizer

MARKERS = ThinkingMarkers("<think>", "</think>")
INSIDE, OUTSIDE, FREE = ThinkingStart.INSIDE, ThinkingStart.OUTSIDE, ThinkingStart.FREE

outputs = st.lists(
    st.sampled_from(
        [*("<think>", "</think>", "\n", "\n\n", " ", "<", "</", "think", ">", "a", "é巴", "</thin")]
    ),
    max_size=10,
).map("".join)
starts = st.sampled_from(list(ThinkingStart))


def parted(text: str, start: ThinkingStart) -> Parted:
    """What the parser must give for the whole text, said in another way."""
    if start is OUTSIDE:
        return Parted(content=text)
    opened = re.match(r"\s*<think>", text)
    if opened is None and start is FREE:
        return Parted(content=text)
    body = text[opened.end() :] if opened else text
    thought, closed, answer = body.partition("</think>")
    if closed:
        return Parted(thought.strip("\n"), answer.lstrip("\n"))
    return Parted(thought.lstrip("\n"))


def run(parser: ReasoningParser, *pieces: str) -> Parted:
    results = [*(parser.feed(piece) for piece in pieces), parser.flush()]
    return Parted("".join(r.reasoning for r in results), "".join(r.content for r in results))


@given(outputs, starts)
@example("<think>\na\n</think>\n\nb", FREE)
@example("a\n</think>\n\nb</think>c", INSIDE)
@settings(max_examples=400)
def test_every_split_in_two_is_the_cut_of_the_whole(text: str, start: ThinkingStart) -> None:
    for i in range(len(text) + 1):
        assert run(ReasoningParser(MARKERS, start), text[:i], text[i:]) == parted(text, start)


@given(outputs, starts, st.data())
def test_every_split_is_the_cut_of_the_whole(
    text: str, start: ThinkingStart, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(ReasoningParser(MARKERS, start), *pieces) == parted(text, start)
    assert run(ReasoningParser(MARKERS, start), *text) == parted(text, start)


@given(outputs, starts)
def test_only_what_can_still_change_is_held(text: str, start: ThinkingStart) -> None:
    parser = ReasoningParser(MARKERS, start)
    for i, character in enumerate(text):
        parser.feed(character)
        held = text[parser.num_settled : i + 1]
        if held.strip():
            tail = held.strip()
            assert "<think>".startswith(tail) or "</think>".startswith(tail)
        if parser.content_start is not None:
            assert held == ""


@given(outputs, starts)
def test_content_is_the_end_of_the_output(text: str, start: ThinkingStart) -> None:
    parser = ReasoningParser(MARKERS, start)
    result = run(parser, *text)
    if result.content:
        assert parser.content_start is not None
        assert text[parser.content_start :] == result.content


def test_a_published_shape() -> None:
    """The example of the Qwen3 model card, parsed as there."""
    output = "<think>\nOkay, the user asks.\n\nShort.\n</think>\n\nA language model.\n"
    assert run(ReasoningParser(MARKERS, FREE), *output) == Parted(
        "Okay, the user asks.\n\nShort.", "A language model.\n"
    )


def test_thinking_is_passed_on_at_once() -> None:
    parser = ReasoningParser(MARKERS, INSIDE)
    assert parser.feed("Let me see") == Parted("Let me see")
    assert parser.feed(" <") == Parted(" ")
    assert parser.feed("b\n\n</thi") == Parted("<b")
    assert parser.feed("nk>\n") == Parted()
    assert parser.feed("\nHi") == Parted(content="Hi")
    assert parser.feed("</think>") == Parted(content="</think>")


def test_open_and_closed() -> None:
    parser = ReasoningParser(MARKERS, FREE)
    assert (parser.is_reasoning, parser.has_reasoned) == (False, False)
    parser.feed("<thi")
    assert (parser.is_reasoning, parser.has_reasoned) == (False, False)
    parser.feed("nk>")
    assert (parser.is_reasoning, parser.has_reasoned) == (True, True)
    parser.feed("</think>")
    assert (parser.is_reasoning, parser.has_reasoned) == (False, True)
    assert ReasoningParser(MARKERS, INSIDE).is_reasoning
    assert not ReasoningParser(MARKERS, OUTSIDE).is_reasoning


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("<|im_start|>assistant\n", FREE),
        ("<|im_start|>assistant\n<think>\n", INSIDE),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", OUTSIDE),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n<think>\nSo", INSIDE),
        ("<|im_start|>user\n<think>\n<|im_end|>\n<|im_start|>assistant\n", FREE),
        ("<|im_start|>user\n</think><|im_end|>\n<|im_start|>assistant\n<think>", INSIDE),
        ("<think>", INSIDE),
        ("", FREE),
    ],
)
@pytest.mark.parametrize("is_special", [False, True])
def test_where_the_answer_begins(prompt: str, start: ThinkingStart, is_special: bool) -> None:
    tokenizer = thinking_tokenizer(is_special=is_special)
    markers = find_markers(HYBRID, tokenizer)
    assert markers is not None
    assert len(markers.special_ids) == (2 if is_special else 0)
    ids = tokenizer.encode(prompt, parse_special=True)
    assert thinking_start(ids, tokenizer, markers) is start


@pytest.mark.parametrize(
    ("tokenizer", "template", "can_think"),
    [
        (thinking_tokenizer(), HYBRID, True),
        (thinking_tokenizer(), NEVER, True),  # in its vocabulary, so it may
        (thinking_tokenizer(is_special=True), NEVER, True),
        (thinking_tokenizer(has_markers=False), ALWAYS, True),  # trained on the text
        (thinking_tokenizer(has_markers=False), NEVER, False),
        (thinking_tokenizer(has_markers=False), NEVER + "{# <think> #}", False),
    ],
)
def test_markers_are_looked_up(tokenizer: Tokenizer, template: str, can_think: bool) -> None:
    markers = find_markers(template, tokenizer)
    assert (markers is not None) == can_think
