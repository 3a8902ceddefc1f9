import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper
from transformers import TopPLogitsWarper as TopP

from engine.messages import SamplingParams
from engine.sampler import Sample, Sampler
from engine.sequence import DraftedSequence, Sampled, Sequence
from tests.engine.sequences import make_sequence

VOCAB = 3000
EOS = 7
INF = float("inf")


def greedy(**values: object) -> SamplingParams:
    return SamplingParams(max_tokens=99, temperature=0.0, **values)  # type: ignore[arg-type]


def token(logits: torch.Tensor, params: SamplingParams, num_output: int = 0) -> int | None:
    """Sample one row of any vocabulary."""
    sequence = make_sequence(params, [1, 2], [3] * num_output)
    [sample] = Sampler(logits.shape[-1], [EOS]).sample(logits.clone(), [sequence])
    return sample.token_id


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_is_the_maximum_and_the_lowest_id_of_a_tie() -> None:
    logits = random_logits(8).round()
    samples = Sampler(VOCAB, [EOS]).sample(logits.clone(), [make_sequence(greedy())] * 8)
    assert [sample.token_id for sample in samples] == [
        row.index(max(row)) for row in logits.tolist()
    ]


def chi_square_bound(degrees: int) -> float:
    """The value a chi-square variable passes about once in a million (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_p": 0.9},
        {"top_k": 6},
        {"top_k": 12, "top_p": 0.8},
    ],
)
@pytest.mark.parametrize("varied", ["seed", "position"])
def test_frequencies_follow_the_distribution(params: dict[str, float], varied: str) -> None:
    vocab_size, num_samples = 24, 6000
    row = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(5)) * 1.5
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.get("temperature", 1.0))])
    if "top_k" in params:
        warpers.append(TopKLogitsWarper(int(params["top_k"])))
    if "top_p" in params:
        warpers.append(TopP(params["top_p"]))
    expected = warpers(torch.zeros(1, 1), row.double()).softmax(-1)[0] * num_samples
    sequences = [
        make_sequence(
            SamplingParams(max_tokens=9, seed=i if varied == "seed" else 3, **params),  # type: ignore[arg-type]
            [1] * (5 if varied == "seed" else i + 1),
        )
        for i in range(num_samples)
    ]
    samples = Sampler(vocab_size, []).sample(row.repeat(num_samples, 1), sequences)
    counts = torch.zeros(vocab_size)
    for sample in samples:
        assert sample.token_id is not None
        counts[sample.token_id] += 1
    possible = expected > 0
    assert bool((counts[~possible] == 0).all())
    statistic = ((counts - expected) ** 2 / expected)[possible].sum().item()
    assert statistic < chi_square_bound(int(possible.sum()) - 1)


params_strategy = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5]),
    top_k=st.sampled_from([0, 0, 1, 20, 500]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    presence_penalty=st.sampled_from([0.0, 0.6]),
    logit_bias=st.sampled_from([{}, {5: 4.0, EOS: 9.0}]),
    min_tokens=st.sampled_from([0, 4]),
    logprobs=st.sampled_from([None, 0, 3]),
)
rows_strategy = st.lists(
    st.tuples(params_strategy, st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=9
)


def build(rows: list[tuple[SamplingParams, int, int]]) -> list[Sequence]:
    return [
        make_sequence(params, list(range(num_prompt)), list(range(10, 10 + num_output)))
        for params, num_prompt, num_output in rows
    ]


@settings(max_examples=60)
@given(rows=rows_strategy, seed=st.integers(0, 99), rounded=st.booleans())
def test_a_row_is_sampled_alone_as_in_any_batch(
    rows: list[tuple[SamplingParams, int, int]], seed: int, rounded: bool
) -> None:
    logits = random_logits(len(rows), seed)
    if rounded:
        logits = logits.round()  # many ties
    sampler = Sampler(VOCAB, [EOS], num_valid_tokens=VOCAB - 13)
    together = sampler.sample(logits.clone(), build(rows))
    alone: list[Sample] = []
    for row, sequence in zip(logits, build(rows), strict=True):
        alone += sampler.sample(row.unsqueeze(0).clone(), [sequence])
    assert together == alone  # tokens and logprobs, bit for bit
    backwards = sampler.sample(logits.flip(0).contiguous(), build(rows)[::-1])
    assert backwards[::-1] == alone


def test_large_vocabulary_alone_as_in_a_batch() -> None:
    logits = torch.randn(12, 151_936, generator=torch.Generator().manual_seed(1)) * 4
    choices: list[dict[str, float]] = [{}, {"top_p": 0.9}, {"temperature": 0.4, "min_p": 0.1}]
    choices += [{"top_k": 20, "top_p": 0.8}]
    sequences = [
        make_sequence(SamplingParams(max_tokens=9, seed=i, logprobs=2, **choices[i % 4]))  # type: ignore[arg-type]
        for i in range(12)
    ]
    sampler = Sampler(151_936, [EOS])
    together = sampler.sample(logits.clone(), sequences)
    for i, sample in enumerate(together):
        assert sampler.sample(logits[i : i + 1].clone(), [sequences[i]]) == [sample]


def test_filters_that_change_nothing_do_not_change_the_token() -> None:
    logits = random_logits(1)
    for seed in range(20):
        plain = token(logits, SamplingParams(max_tokens=9, seed=seed))
        for values in ({"top_p": 1 - 1e-12}, {"top_k": VOCAB - 1}, {"top_k": VOCAB + 5}):
            assert token(logits, SamplingParams(max_tokens=9, seed=seed, **values)) == plain


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("where", [slice(0, 1), slice(EOS, EOS + 1), slice(VOCAB - 1, None)])
def test_a_bad_row_fails_alone(bad: float, where: slice) -> None:
    choices: list[dict[str, float]] = [
        {"temperature": 0.0},
        {},
        {"top_p": 0.9, "temperature": 0.8},
        {"top_k": 5, "min_p": 0.1},
        {"repetition_penalty": 1.2},
        {"min_tokens": 5},
    ]
    sequences = [
        make_sequence(SamplingParams(max_tokens=9, seed=i, logprobs=1, **choices[i // 2]))  # type: ignore[arg-type]
        for i in range(12)
    ]
    logits = random_logits(12)
    expected = Sampler(VOCAB, [EOS]).sample(logits.clone(), sequences)
    if bad == -INF:
        where = slice(None)
    logits[::2, where] = bad
    result = Sampler(VOCAB, [EOS]).sample(logits, sequences)
    assert result[::2] == [Sample(None, None)] * 6
    assert result[1::2] == expected[1::2]


def test_nothing_left_after_masking() -> None:
    logits = torch.full((1, VOCAB), -INF)
    logits[0, EOS] = 1.0
    assert token(logits, greedy()) == EOS
    assert token(logits, greedy(min_tokens=1)) is None
    assert token(logits, SamplingParams(max_tokens=9, min_tokens=1)) is None


def test_single_finite_logit_is_always_taken() -> None:
    logits = torch.full((1, VOCAB), -INF)
    logits[0, 1234] = -5.0
    for values in ({}, {"top_p": 0.5}, {"top_k": 40}, {"min_p": 1.0}, {"temperature": 0.0}):
        params = SamplingParams(max_tokens=9, seed=11, **values)
        assert token(logits, params) == 1234


def test_min_p_of_one_leaves_the_most_likely() -> None:
    logits = random_logits(1)
    best = int(logits.argmax())
    assert {token(logits, SamplingParams(max_tokens=9, seed=s, min_p=1.0)) for s in range(9)} == {
        best
    }


def test_processors_act_before_sampling() -> None:
    logits = random_logits(1)
    best = int(logits.argmax())
    second = int(logits[0].topk(2).indices[1])
    assert token(logits, greedy(logit_bias={best: -100.0})) == second
    assert token(logits, greedy(logit_bias={44: 100.0})) == 44
    logits[0, EOS] = 50.0
    assert token(logits, greedy(min_tokens=2), num_output=1) == best
    assert token(logits, greedy(min_tokens=2), num_output=2) == EOS


def test_padding_is_never_sampled() -> None:
    logits = torch.zeros(50, 10)
    logits[:, 8:] = 20.0
    params = [SamplingParams(max_tokens=9, seed=i, temperature=i % 2) for i in range(50)]
    samples = Sampler(10, [1], num_valid_tokens=8).sample(
        logits, [make_sequence(p) for p in params]
    )
    assert all(sample.token_id is not None and sample.token_id < 8 for sample in samples)


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = random_logits(3)
    expected = logits.double().log_softmax(-1)
    changes = {"logit_bias": {44: 100.0}, "repetition_penalty": 1.5, "top_k": 1}
    sequences = [
        make_sequence(greedy(logprobs=4, **changes), [1, 2]),
        make_sequence(greedy()),
        make_sequence(SamplingParams(max_tokens=9, temperature=0.2, logprobs=0)),
    ]
    first, second, third = Sampler(VOCAB, [EOS]).sample(logits, sequences)
    assert first.token_id == 44
    assert first.logprobs is not None
    assert first.logprobs.token_id == 44
    assert first.logprobs.logprob == pytest.approx(expected[0, 44].item(), abs=1e-5)
    assert [token_id for token_id, _ in first.logprobs.top] == expected[0].topk(4).indices.tolist()
    assert second.logprobs is None
    assert third.logprobs is not None
    assert third.token_id is not None
    assert third.logprobs.logprob == pytest.approx(expected[2, third.token_id].item(), abs=1e-5)
    assert third.logprobs.top == []


def test_no_sequences() -> None:
    assert Sampler(VOCAB, [EOS]).sample(torch.empty(0, VOCAB), []) == []


def test_wrong_shapes_and_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="logits of shape"):
        Sampler(VOCAB, [EOS]).sample(torch.zeros(2, VOCAB), [make_sequence(greedy())])
    with pytest.raises(ValueError, match="eos ids"):
        Sampler(VOCAB, [VOCAB])
    with pytest.raises(ValueError, match="valid tokens"):
        Sampler(VOCAB, [EOS], num_valid_tokens=VOCAB + 1)


class TestDrafts:
    """Rows behind drafts: what each takes is what its sequence would take there."""

    def rows(self, sequence: Sequence, drafts: tuple[int, ...]) -> list[Sampled]:
        return [
            sequence,
            *(DraftedSequence(sequence, drafts[: i + 1]) for i in range(len(drafts))),
        ]

    def alone(self, logits: torch.Tensor, params: SamplingParams) -> list[Sample]:
        """One token after the other, each from its row."""
        sequence = make_sequence(params)
        samples = []
        for row in logits:
            [sample] = Sampler(VOCAB, [EOS]).sample(row.clone().unsqueeze(0), [sequence])
            assert sample.token_id is not None
            sequence.token_ids.append(sample.token_id)
            samples.append(sample)
        return samples

    @pytest.mark.parametrize(
        "values",
        [
            {"temperature": 0.0},
            {"seed": 5, "logprobs": 2},
            {"seed": 6, "top_p": 0.8, "top_k": 40, "temperature": 2.0},
            {"seed": 7, "repetition_penalty": 3.0, "frequency_penalty": 1.0, "top_k": 3},
            {"seed": 8, "min_tokens": 3, "logit_bias": {EOS: 50.0, 9: 45.0}, "logprobs": 0},
        ],
    )
    def test_they_are_taken_up_to_the_first_that_was_not_sampled(
        self, values: dict[str, Any]
    ) -> None:
        params = SamplingParams(max_tokens=99, **values)
        logits = random_logits(5)
        expected = self.alone(logits, params)
        token_ids = [sample.token_id or 0 for sample in expected]
        for num_right in range(5):
            drafts = token_ids[:num_right] + [1 + (t + 1) % 2900 for t in token_ids[num_right:4]]
            other = make_sequence(SamplingParams(max_tokens=9, seed=1))
            batch = [other, *self.rows(make_sequence(params), tuple(drafts)), other]
            padded = torch.cat([random_logits(1, 8), logits, random_logits(1, 9)])
            samples = Sampler(VOCAB, [EOS]).sample(padded, batch)[1:-1]
            assert [s.token_id for s in samples] == (
                token_ids[: num_right + 1] + [None] * (4 - num_right)
            )
            for sample, wanted in zip(samples[: num_right + 1], expected, strict=False):
                assert (sample.logprobs is None) == (wanted.logprobs is None)
                if sample.logprobs is not None and wanted.logprobs is not None:
                    assert sample.logprobs.token_id == wanted.logprobs.token_id
                    assert sample.logprobs.logprob == pytest.approx(wanted.logprobs.logprob)
            assert all(sample.logprobs is None for sample in samples[num_right + 1 :])

    def test_nan_behind_a_draft_is_not_the_end_of_the_sequence(self) -> None:
        logits = random_logits(3)
        token_ids = logits.argmax(-1).tolist()
        logits[1, 5] = float("nan")
        samples = Sampler(VOCAB, [EOS]).sample(
            logits, self.rows(make_sequence(greedy()), tuple(token_ids[:2]))
        )
        assert [sample.token_id for sample in samples] == [token_ids[0], None, None]
