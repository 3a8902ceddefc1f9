"""Speculation on real decoders: lookups and a draft model change no token, and a draft model that
is the model itself is nearly always right.

On this backend logits can differ in their last bits with the shape of a step; the random models
have no ties that this could decide.
"""

from pathlib import Path

import pytest
import torch

from engine.core import Engine
from engine.messages import EngineRequest, SamplingParams, TokenEvent, TokenLogprobs
from engine.models.decoder import Decoder
from engine.sequence import Chunk
from engine.speculation.ngram_proposer import NgramProposer
from engine.speculation.proposer import Proposer
from engine.speculation.speculator import Speculator
from tests.engine import tiny_models
from tests.engine.speculation.drafting import OracleProposer, eager
from tests.engine.speculation.tiny_engines import EOS, draft_model, load, tiny_engine

MAX_LEN = 200
PROMPTS = [[5, 6, 7, 8] * 5, [9, 10, 11], list(range(3, 40)), [20] * 17, [30, 31, 30, 31, 30]]
SAMPLINGS = [
    SamplingParams(max_tokens=40, temperature=0, logprobs=2),
    SamplingParams(max_tokens=30, seed=3, prompt_logprobs=1, logprobs=0),
    SamplingParams(max_tokens=35, seed=4, top_p=0.7, repetition_penalty=1.2, min_tokens=20),
    SamplingParams(max_tokens=40, temperature=0, frequency_penalty=0.5, ignore_eos=True),
    SamplingParams(max_tokens=25, seed=5, temperature=0.4, logit_bias={5: 3.0, 6: 3.0}),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("target")
    return load(tiny_models.write(tiny_models.build("qwen3"), folder))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A smaller model of another family with the same vocabulary."""
    folder = tmp_path_factory.mktemp("other")
    return load(tiny_models.write(tiny_models.build("qwen2", num_hidden_layers=1), folder))


Output = tuple[list[int], list[TokenLogprobs | None], object]


def run(engine: Engine, samplings: list[SamplingParams] = SAMPLINGS) -> dict[str, Output]:
    """Tokens, logprobs of the output and of the prompt, and the terminal event, by request."""
    for i, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True)):
        engine.add(EngineRequest(id=str(i), prompt_token_ids=prompt, sampling=sampling))
    outputs: dict[str, Output] = {}
    tokens: dict[str, list[int]] = {}
    logprobs: dict[str, list[TokenLogprobs | None]] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens.setdefault(event.id, []).extend(event.token_ids)
                logprobs.setdefault(event.id, []).extend(event.logprobs or [])
                logprobs[event.id] += event.prompt_logprobs or []
            else:
                end = (event.reason, event.stop_token_id, event.num_output_tokens)
                outputs[event.id] = (tokens.get(event.id, []), logprobs.get(event.id, []), end)
    engine.scheduler.block_manager.check_idle()
    return outputs


def check(outputs: dict[str, Output], expected: dict[str, Output]) -> None:
    assert outputs.keys() == expected.keys()
    for request_id, (tokens, logprobs, end) in outputs.items():
        expected_tokens, expected_logprobs, expected_end = expected[request_id]
        assert (tokens, end) == (expected_tokens, expected_end)
        for ours, theirs in zip(logprobs, expected_logprobs, strict=True):
            if ours is None or theirs is None:
                assert ours is theirs
                continue
            assert ours.token_id == theirs.token_id
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [value for _, value in ours.top] == pytest.approx(
                [value for _, value in theirs.top], abs=1e-4
            )


def speculate(proposer: Proposer, max_drafts: int = 6) -> Speculator:
    return eager(proposer, max_drafts=max_drafts, max_model_len=MAX_LEN, eos_token_ids=(EOS,))


@pytest.mark.parametrize("num_blocks", [200, 24])
def test_lookups_change_nothing(target: Decoder, num_blocks: int) -> None:
    expected = run(tiny_engine(target, num_blocks=num_blocks))
    engine = tiny_engine(target, num_blocks=num_blocks, speculator=speculate(NgramProposer()))
    check(run(engine), expected)
    assert 0 < engine.stats().num_accepted_tokens < engine.stats().num_draft_tokens


@pytest.mark.parametrize("error_rate", [0.0, 0.3])
def test_right_and_wrong_drafts_change_nothing(target: Decoder, error_rate: float) -> None:
    expected = run(tiny_engine(target))

    oracle = OracleProposer(
        lambda sequence, count: expected[sequence.id][0][sequence.num_output_tokens :][:count],
        tiny_models.VOCAB_SIZE,
        error_rate=error_rate,
    )
    engine = tiny_engine(target, speculator=speculate(oracle))
    check(run(engine), expected)
    stats = engine.stats()
    if error_rate == 0:
        assert stats.num_accepted_tokens == stats.num_draft_tokens > 50


class TestDraftModel:
    @pytest.mark.parametrize("num_blocks", [200, 24])
    def test_another_model_changes_nothing(
        self, target: Decoder, other: Decoder, num_blocks: int
    ) -> None:
        expected = run(tiny_engine(target, num_blocks=num_blocks))
        speculator = speculate(draft_model(other, num_blocks))
        engine = tiny_engine(target, num_blocks=num_blocks, speculator=speculator)
        check(run(engine), expected)
        assert engine.stats().num_draft_tokens > 50

    @pytest.mark.parametrize("num_blocks", [200, 24])
    def test_the_model_itself_is_right(self, target: Decoder, num_blocks: int) -> None:
        """Its cache, and what it has seen, is what it should be: also after preemptions."""
        greedy = [SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)] * len(PROMPTS)
        expected = run(tiny_engine(target, num_blocks=num_blocks), greedy)
        speculator = speculate(draft_model(target, num_blocks))
        engine = tiny_engine(target, num_blocks=num_blocks, speculator=speculator)
        check(run(engine, greedy), expected)
        stats = engine.stats()
        assert stats.num_accepted_tokens == stats.num_draft_tokens > 100
        assert (stats.num_preemptions > 0) == (num_blocks == 24)

    def test_it_takes_a_long_prompt_in_part_by_part(self, target: Decoder) -> None:
        model = draft_model(target)
        engine = tiny_engine(target, speculator=speculate(model))
        sampling = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
        prompt = [3 + i % 90 for i in range(150)]
        engine.add(EngineRequest(id="a", prompt_token_ids=prompt, sampling=sampling))
        seen = []
        while engine.has_work:
            engine.step()
            seen += [s.num_draft_computed_tokens for s in engine.scheduler.running]
        assert seen[:4] == [0, 0, 0, 128]
        assert engine.stats().num_accepted_tokens == engine.stats().num_draft_tokens > 3

    def test_sequences_longer_than_its_context_get_none(
        self, target: Decoder, tmp_path: Path
    ) -> None:
        short = tiny_models.build("qwen2", max_position_embeddings=32)
        model = draft_model(load(tiny_models.write(short, tmp_path)))
        engine = tiny_engine(target, speculator=speculate(model))
        sampling = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
        engine.add(EngineRequest(id="a", prompt_token_ids=[4] * 20, sampling=sampling))
        while engine.has_work:
            engine.step()
        assert 0 < engine.stats().num_draft_tokens < 80

    def test_ids_beyond_its_embedding_are_harmless(self, target: Decoder, tmp_path: Path) -> None:
        small = tiny_models.build("qwen2", vocab_size=90)
        model = draft_model(load(tiny_models.write(small, tmp_path)))
        engine = tiny_engine(target, speculator=speculate(model))
        expected = run(tiny_engine(target))
        check(run(engine), expected)

    def test_it_rests_while_it_is_not_worth_its_time(self, target: Decoder) -> None:
        model = draft_model(target)
        engine = tiny_engine(target, speculator=speculate(model))
        sampling = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
        engine.add(EngineRequest(id="a", prompt_token_ids=[4, 5], sampling=sampling))
        engine.step()
        engine.step()
        before = engine.stats().num_draft_tokens
        assert before > 0
        for _ in range(4):
            model.declined()
        for _ in range(60):
            engine.step()
        assert engine.stats().num_draft_tokens == before
        while engine.has_work:
            engine.step()
        assert engine.stats().num_draft_tokens > before  # it was tried again

    def test_it_computes_no_token_twice_that_was_right(
        self, target: Decoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = draft_model(target)
        num_computed = 0
        forward = model._forward

        def counting(chunks: list[Chunk]) -> torch.Tensor:
            nonlocal num_computed
            num_computed += sum(chunk.num_tokens for chunk in chunks)
            return forward(chunks)

        monkeypatch.setattr(model, "_forward", counting)
        engine = tiny_engine(target, speculator=speculate(model))
        sampling = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
        engine.add(EngineRequest(id="a", prompt_token_ids=[4] * 30, sampling=sampling))
        while engine.has_work:
            engine.step()
        assert engine.stats().num_accepted_tokens == engine.stats().num_draft_tokens
        assert num_computed <= 30 + 60
