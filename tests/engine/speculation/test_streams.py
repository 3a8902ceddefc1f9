"""Speculation changes how fast tokens come and nothing else: streams with it and without are equal.

The model is random (tests/engine/random_runner.py), its cache is checked slot by slot, and drafts
are right, wrong, or what an n-gram lookup makes of prompts with few different tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import Engine
from engine.messages import (
    EngineRequest,
    Event,
    Finished,
    Grammar,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from engine.sequence import Sequence
from engine.speculation.ngram_proposer import NgramProposer
from engine.speculation.proposer import Proposer
from tests.engine.grammars import EOS, VOCAB_SIZE
from tests.engine.random_runner import random_engine
from tests.engine.speculation.drafting import OracleProposer, eager
from tests.engine.toy_runner import VOCAB_SIZE as TOY_VOCAB_SIZE
from tests.engine.toy_runner import expected_output, make_request, toy_engine

LETTERS = range(97, 103)
MAX_LEN = 90

SCHEMA = '{"type":"object","properties":{"ab":{"enum":["a","b"]},"c":{"type":"integer"}}}'
GRAMMARS = [
    None,
    None,
    Grammar(kind="json_schema", text=SCHEMA),
    Grammar(kind="regex", text="(ab|c){0,30}d"),
    Grammar(kind="choice", text='["abcabcabc", "abcabd"]'),
]


@dataclass
class Stream:
    """What a client gets of one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | None = None


def add_events(streams: dict[str, Stream], events: list[Event]) -> None:
    for event in events:
        stream = streams.setdefault(event.id, Stream())
        assert stream.end is None, "an event after the terminal one"
        if isinstance(event, TokenEvent):
            assert event.token_ids
            stream.token_ids += event.token_ids
            assert event.logprobs is None or len(event.logprobs) == len(event.token_ids)
            stream.logprobs += event.logprobs or []
        else:  # how much of a prompt others had computed is a question of time
            stream.end = msgspec.structs.replace(event, num_cached_tokens=0)


def run(
    engine: Engine, requests: list[EngineRequest], aborts: dict[int, str] | None = None
) -> dict[str, Stream]:
    """All streams; `aborts`: requests to abort, by step."""
    streams: dict[str, Stream] = {}
    for request in requests:
        engine.add(request)
    num_steps = 0
    while engine.has_work:
        if aborts and num_steps in aborts:
            add_events(streams, engine.abort(aborts[num_steps]))
        if engine.has_work:
            add_events(streams, engine.step())
        num_steps += 1
    engine.scheduler.block_manager.check_idle()
    return streams


samplings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(0, 40),
        "seed": st.integers(0, 9),
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
    },
    optional={
        "top_p": st.just(0.8),
        "top_k": st.sampled_from([1, 5]),
        "min_p": st.just(0.1),
        "repetition_penalty": st.sampled_from([0.5, 1.4]),
        "presence_penalty": st.sampled_from([-1.0, 0.7]),
        "frequency_penalty": st.sampled_from([-0.6, 0.4]),
        # a few letters come again and again, so that n-grams have something to find
        "logit_bias": st.sampled_from([dict.fromkeys(LETTERS, 6.0), {98: 9.0, 99: 9.0}]),
        "min_tokens": st.integers(0, 12),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.just((98,)),
        "logprobs": st.integers(0, 3),
    },
)
requests_of_one_engine = st.lists(
    st.tuples(
        st.lists(st.sampled_from(LETTERS), min_size=1, max_size=20),
        samplings,
        st.sampled_from(GRAMMARS),
        st.integers(-1, 1),
    ),
    min_size=1,
    max_size=6,
)


def make(drawn: list[tuple[list[int], dict[str, Any], Grammar | None, int]]) -> list[EngineRequest]:
    return [
        EngineRequest(
            id=str(i),
            prompt_token_ids=prompt,
            sampling=SamplingParams(**sampling),
            grammar=grammar,
            priority=priority,
        )
        for i, (prompt, sampling, grammar, priority) in enumerate(drawn)
    ]


def oracle(streams: dict[str, Stream], error_rate: float, seed: int = 0) -> OracleProposer:
    """Knows the streams that were generated without speculation."""

    def what_follows(sequence: Sequence, count: int) -> list[int]:
        start = sequence.num_output_tokens
        return streams[sequence.id].token_ids[start : start + count]

    return OracleProposer(what_follows, VOCAB_SIZE, seed=seed, error_rate=error_rate)


@settings(max_examples=150)
@given(
    drawn=requests_of_one_engine,
    num_blocks=st.integers(24, 60),
    caching=st.booleans(),
    error_rate=st.sampled_from([0.0, 0.2, 1.0, None]),
    seed=st.integers(0, 99),
    max_drafts=st.integers(1, 12),
    aborts=st.dictionaries(st.integers(0, 30), st.sampled_from("012345"), max_size=2),
)
def test_streams_are_those_without_speculation(
    drawn: list[tuple[list[int], dict[str, Any], Grammar | None, int]],
    num_blocks: int,
    caching: bool,
    error_rate: float | None,
    seed: int,
    max_drafts: int,
    aborts: dict[int, str],
) -> None:
    requests = make(drawn)
    limits: dict[str, Any] = {
        "num_blocks": num_blocks,
        "max_model_len": MAX_LEN,
        "enable_prefix_caching": caching,
    }
    plain = run(random_engine(**limits), requests)
    proposer: Proposer = NgramProposer()
    if error_rate is not None:
        proposer = oracle(plain, error_rate, seed)
    speculator = eager(proposer, max_drafts=max_drafts, max_model_len=MAX_LEN, eos_token_ids=(EOS,))
    streams = run(random_engine(**limits, speculator=speculator), requests, aborts)
    assert set(streams) == set(plain)
    for request_id, stream in streams.items():
        expected = plain[request_id]
        assert stream.end is not None
        if stream.end.reason == "abort":
            assert stream.token_ids == expected.token_ids[: len(stream.token_ids)]
        else:
            assert stream == expected


def test_sequences_with_a_grammar_get_drafts_too() -> None:
    requests = make(
        [([97], {"max_tokens": 60, "seed": i}, GRAMMARS[2 + i % 3], 0) for i in range(6)]
    )
    plain = run(random_engine(), requests)
    speculator = eager(
        oracle(plain, error_rate=0.0), max_model_len=2000, eos_token_ids=(EOS,), max_drafts=8
    )
    engine = random_engine(speculator=speculator)
    assert run(engine, requests) == plain
    stats = engine.stats()
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 30
    assert {stream.end.reason for stream in plain.values() if stream.end} >= {"stop"}


def test_nan_in_the_middle_ends_the_sequence_behind_the_same_token() -> None:
    output = expected_output([1, 2, 3], 12)
    streams = []
    for error_rate in (None, 0.0, 0.5):
        speculator = None
        if error_rate is not None:
            proposer = OracleProposer(
                lambda sequence, count: expected_output(sequence.token_ids, count),
                TOY_VOCAB_SIZE,
                error_rate=error_rate,
            )
            speculator = eager(proposer)
        engine, runner = toy_engine(speculator=speculator)
        runner.nan_tokens = {output[6]}
        streams.append(run(engine, [make_request("a", [1, 2, 3], max_tokens=12)])["a"])
    end = streams[0].end
    assert end is not None and end.reason == "error"
    assert len(streams[0].token_ids) == 7
    assert streams[1] == streams[2] == streams[0]
