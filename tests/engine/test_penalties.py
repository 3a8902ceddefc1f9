import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from engine.messages import SamplingParams
from engine.penalties import PenaltyState, apply_penalties
from engine.sequence import DraftedSequence, Sampled
from tests.engine.sequences import make_sequence

VOCAB = 40
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)


def naive(row: list[float], params: SamplingParams, prompt: list[int], output: list[int]) -> None:
    """The three penalties by their definitions, token by token, in float64."""
    for token_id in set(prompt) | set(output):
        factor = params.repetition_penalty
        row[token_id] = row[token_id] / factor if row[token_id] > 0 else row[token_id] * factor
    for token_id in set(output):
        row[token_id] -= params.presence_penalty
        row[token_id] -= params.frequency_penalty * output.count(token_id)


@settings(max_examples=60)
@given(prompt=tokens.filter(bool), output=tokens, more=tokens, seed=st.integers(0, 1000))
def test_state_counts_new_tokens_as_a_recount_does(
    prompt: list[int], output: list[int], more: list[int], seed: int
) -> None:
    params = SamplingParams(
        max_tokens=9, repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=-0.4
    )
    sequence = make_sequence(params, prompt, output)
    state = PenaltyState()
    state.update(sequence)
    sequence.token_ids += more
    state.update(sequence)
    counts = dict(zip(state.token_ids.tolist(), state.output_counts.tolist(), strict=True))
    produced = output + more
    assert counts == {token: produced.count(token) for token in set(prompt) | set(produced)}

    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(seed))
    expected = logits.double().tolist()
    naive(expected[1], params, prompt, produced)
    sequence.penalties = state
    apply_penalties(logits, [make_sequence(SamplingParams(max_tokens=9)), sequence])
    torch.testing.assert_close(logits, torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_repetition_equals_transformers() -> None:
    logits = torch.randn(3, VOCAB)
    prompts = [[1, 5, 5, 9], [30, 2, 2, 2], [7, 8, 9, 10]]
    sequences = [
        make_sequence(SamplingParams(max_tokens=9, repetition_penalty=1.7), prompt[:2], prompt[2:])
        for prompt in prompts
    ]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(prompts), logits.clone())
    apply_penalties(logits, sequences)
    assert torch.equal(logits, expected)


def test_state_grows_past_its_first_room() -> None:
    sequence = make_sequence(SamplingParams(max_tokens=9), list(range(1000)), [3] * 7 + [5000])
    state = PenaltyState()
    state.update(sequence)
    assert state.token_ids.tolist() == [*range(1000), 5000]
    assert state.output_counts[3] == 7
    assert state.output_counts.sum() == 8


def test_state_is_kept_in_the_sequence_and_only_where_needed() -> None:
    plain = make_sequence(SamplingParams(max_tokens=9))
    penalised = make_sequence(SamplingParams(max_tokens=9, presence_penalty=1.0))
    apply_penalties(torch.zeros(2, VOCAB), [plain, penalised])
    assert plain.penalties is None
    assert penalised.penalties is not None


def test_masked_logits_stay_masked() -> None:
    logits = torch.full((1, VOCAB), float("-inf"))
    params = SamplingParams(max_tokens=9, repetition_penalty=0.5, frequency_penalty=-2.0)
    apply_penalties(logits, [make_sequence(params, [1], [2])])
    assert bool((logits == float("-inf")).all())


@settings(max_examples=60)
@given(
    prompt=tokens.filter(bool),
    output=tokens,
    steps=st.lists(st.tuples(st.lists(st.integers(0, VOCAB - 1), max_size=5), tokens), max_size=4),
)
def test_drafts_count_as_output_until_others_come(
    prompt: list[int], output: list[int], steps: list[tuple[list[int], list[int]]]
) -> None:
    """Each step: rows behind each draft, then what really came."""
    params = SamplingParams(max_tokens=9, repetition_penalty=1.3, frequency_penalty=0.4)
    sequence = make_sequence(params, prompt, output)
    for drafts, came in steps:
        rows: list[Sampled] = [sequence]
        rows += (DraftedSequence(sequence, tuple(drafts[:i])) for i in range(1, 6))
        logits = torch.randn(len(rows), VOCAB)
        expected = torch.cat([logits[i : i + 1].clone() for i in range(len(rows))])
        apply_penalties(logits, rows)
        for i in range(len(rows)):
            alone = make_sequence(params, prompt, sequence.output_ids + drafts[:i])
            apply_penalties(expected[i : i + 1], [alone])
        assert torch.equal(logits, expected)
        sequence.token_ids += came
