"""The workloads are the same for every server, new in every round, and of the sizes they name."""

import random
import statistics
from itertools import pairwise

import pytest

from loadtest.workloads import (
    CHAT_ANSWERS,
    CHAT_PROMPTS,
    WORKLOADS,
    Call,
    Lengths,
    Workload,
    prefill,
    prefix,
    words,
)


def prompt_of(call: Call) -> str:
    messages = call.body.get("messages")
    if messages is None:
        return str(call.body["prompt"])
    assert isinstance(messages, list)
    return " ".join(message["content"] for message in messages)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_calls_are_seeded(workload: Workload) -> None:
    calls = workload.calls(1, 0)
    assert calls == workload.calls(1, 0)
    others = [workload.calls(1, 1), workload.calls(2, 0)]
    texts = [{prompt_of(call) for call in some} for some in (calls, *others)]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_prompts_share_no_prefix_but_where_it_is_meant(workload: Workload) -> None:
    calls = workload.calls(0, 0)
    starts = [" ".join(prompt_of(call).split()[:4]) for call in calls]
    num_new = sum(call.tag != "hit" for call in calls)
    assert len(set(starts)) == num_new


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_answers_have_a_fixed_length_and_their_usage(workload: Workload) -> None:
    for call in workload.calls(0, 0):
        assert call.path == ("/chat/completions" if "messages" in call.body else "/completions")
        assert call.num_tokens == call.body["max_tokens"]
        assert call.body["ignore_eos"] is call.body["stream"] is True
        assert call.body["stream_options"] == {"include_usage": True}
        assert call.body["temperature"] == 0
        assert len(prompt_of(call).split()) + call.num_tokens < 4000  # of a context of 4,096


def test_names() -> None:
    assert [workload.name for workload in WORKLOADS] == [
        *("decode-1", "decode-8", "decode-32", "prefill-512", "prefill-2048"),
        *("chats-16", "prefix-1000"),
    ]


def test_prefill_is_of_so_many_words() -> None:
    calls = prefill(512, 3).calls(0, 0)
    assert [len(prompt_of(call).split()) for call in calls] == [512] * 3
    assert [call.num_tokens for call in calls] == [1] * 3


def test_a_prefix_is_new_once() -> None:
    calls = prefix(1000, 2, 2).calls(0, 0)
    assert [call.tag for call in calls] == ["miss", "hit", "hit"] * 2
    texts = [prompt_of(call).split() for call in calls]
    for (before, after), call in zip(pairwise(texts), calls[1:], strict=True):
        assert (before[:1000] == after[:1000]) == (call.tag == "hit")
        assert before[1000:] != after[1000:]


def test_lengths_are_lognormal_within_their_ends() -> None:
    generator = random.Random(0)
    lengths = Lengths(median=100, sigma=1.0, least=10, most=10_000)
    drawn = [lengths.draw(generator) for _ in range(4000)]
    assert 90 < statistics.median(drawn) < 110
    assert 150 < statistics.mean(drawn) < 180  # 100 * exp(1 / 2) = 165
    assert min(drawn) >= 10
    for ends in (CHAT_PROMPTS, CHAT_ANSWERS):
        values = [ends.draw(generator) for _ in range(4000)]
        assert ends.least <= min(values)
        assert max(values) == ends.most


def test_words() -> None:
    assert len(words(random.Random(0), 300).split()) == 300
    assert words(random.Random(0), 0) == ""


@pytest.mark.real_model
def test_words_are_tokens(smollm2_path: object) -> None:
    from engine.checkpoint import Checkpoint
    from protocol.tokenizer import Tokenizer
    from server.served_model import ModelText

    tokenizer: Tokenizer = ModelText.of(Checkpoint.open(str(smollm2_path))).tokenizer
    text = words(random.Random(0), 2000)
    assert 2000 <= len(tokenizer.encode(text, parse_special=False)) <= 2010
