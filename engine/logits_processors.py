"""What changes logits before temperature: bias, min_tokens, penalties, grammars, in this order.

Each is a few indexed logits, not a pass over the vocabulary, and a row that asks for none costs
nothing. The ids are within the vocabulary: requests are checked when they are admitted.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items

import torch

from engine.grammar_masks import GrammarMasks
from engine.penalties import apply_penalties, has_penalties
from engine.sequence import Sampled


def has_processors(sequence: Sampled) -> bool:
    """Whether `apply_logits_processors` changes this sequence's row."""
    sampling = sequence.sampling
    return (
        bool(sampling.logit_bias)
        or sequence.num_output_tokens < sampling.min_tokens
        or has_penalties(sampling)
        or sequence.grammar is not None
    )


def apply_logits_processors(
    logits: torch.Tensor, sequences: Items[Sampled], eos_token_ids: Iterable[int]
) -> None:
    """Change `logits` (n, vocab) in place, row i by the sampling params of sequence i."""
    eos = frozenset(eos_token_ids)
    masks = GrammarMasks.of(sequences) if any(seq.grammar for seq in sequences) else None
    _add_bias(logits, sequences)
    _mask_stop_tokens(logits, sequences, eos, masks)
    apply_penalties(logits, sequences)
    if masks is not None:
        masks.apply(logits)


def _add_bias(logits: torch.Tensor, sequences: Items[Sampled]) -> None:
    entries = [
        (row, token_id, bias)
        for row, sequence in enumerate(sequences)
        for token_id, bias in sequence.sampling.logit_bias.items()
    ]
    if not entries:
        return
    rows, token_ids, biases = zip(*entries, strict=True)
    places = (
        torch.tensor(rows, device=logits.device),
        torch.tensor(token_ids, device=logits.device),
    )
    # no id is twice in a row's dict, so a plain scatter adds each bias once
    logits[places] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)


def _mask_stop_tokens(
    logits: torch.Tensor,
    sequences: Items[Sampled],
    eos_token_ids: frozenset[int],
    masks: GrammarMasks | None,
) -> None:
    """Forbid the tokens that would end a sequence before its min_tokens.

    Where its grammar allows nothing else, the sequence ends all the same.
    """
    entries: list[tuple[int, int]] = []
    for row, sequence in enumerate(sequences):
        if sequence.num_output_tokens >= sequence.sampling.min_tokens:
            continue
        stop_token_ids = _stop_token_ids(sequence, eos_token_ids)
        if masks is not None and masks.is_end(row, stop_token_ids):
            continue
        # a stop token outside the vocabulary cannot be sampled
        entries += [(row, i) for i in stop_token_ids if 0 <= i < logits.shape[-1]]
    if not entries:
        return
    rows, token_ids = zip(*entries, strict=True)
    places = (
        torch.tensor(rows, device=logits.device),
        torch.tensor(token_ids, device=logits.device),
    )
    logits[places] = float("-inf")


def _stop_token_ids(sequence: Sampled, eos_token_ids: frozenset[int]) -> frozenset[int]:
    # with ignore_eos an eos token ends nothing, so min_tokens has no reason to forbid it
    own = frozenset(sequence.sampling.stop_token_ids)
    return own if sequence.sampling.ignore_eos else own | eos_token_ids
