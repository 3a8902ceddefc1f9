"""Drafts where a grammar has to be completed before the tokens run out."""

import torch

from engine.messages import Grammar, SamplingParams
from engine.sampler import Sampler
from engine.sequence import DraftedSequence, Sampled, Sequence
from tests.engine.grammars import EOS, VOCAB_SIZE, ids_of, state_of
from tests.engine.sequences import make_sequence

# behind "p" comes "b", and then anything may follow or nothing; or what takes long to be closed
GRAMMAR = Grammar(kind="regex", text="(p(b|q[a-z]{9}b))*")


def sequence_with(num_left: int) -> Sequence:
    output = ids_of("pbpbp")
    params = SamplingParams(max_tokens=len(output) + num_left, temperature=0.0)
    sequence = make_sequence(params, output=output)
    sequence.grammar = state_of(GRAMMAR, output)
    return sequence


def sampled(sequence: Sequence, drafts: str) -> list[int | None]:
    """What rows behind `drafts` give where the model wants to go on with "q" and "p"."""
    ids = tuple(ids_of(drafts))
    rows: list[Sampled] = [sequence]
    rows += (DraftedSequence(sequence, ids[: i + 1]) for i in range(len(ids)))
    logits = torch.zeros(len(rows), VOCAB_SIZE)
    logits[:, ids_of("q")] = 9.0
    logits[:, ids_of("p")] = 5.0
    return [sample.token_id for sample in Sampler(VOCAB_SIZE, [EOS]).sample(logits, rows)]


def test_nothing_is_taken_behind_the_token_that_completes_it() -> None:
    sequence = sequence_with(num_left=4)
    assert sampled(sequence, "bpb") == [*ids_of("b"), None, None, None]
    grammar = sequence.grammar
    assert grammar is not None and grammar.is_complete and grammar.is_closed_early


def test_while_there_is_room_the_model_has_its_way() -> None:
    sequence = sequence_with(num_left=40)
    assert sampled(sequence, "qa") == [*ids_of("qq"), None]
    sequence = sequence_with(num_left=40)
    assert sampled(sequence, "qq") == ids_of("qqq")


def test_nothing_is_drafted_once_the_end_has_begun() -> None:
    sequence = sequence_with(num_left=4)
    grammar = sequence.grammar
    assert grammar is not None and grammar.num_draftable(ids_of("bp")) == 2
    sampled(sequence, "")
    assert grammar.num_draftable(ids_of("bp")) == 0
