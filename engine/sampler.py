"""Logits to token ids: one sample per row, each by its sequence's sampling params.

A token is a function of the sequence's seed, its position and its distribution alone: a sequence
gets the same token alone and in any batch. Knows nothing of stopping, text or the KV cache. Called
by the model runner after each forward pass.

Order: logprobs of the raw distribution; logit bias, min_tokens, penalties; then temperature, top_k,
top_p, min_p. What a grammar needs to be completed in time replaces what was drawn.

Drafts are verified by sampling behind each of them: a row counts as long as what was sampled in the
row before is the draft that it stands behind.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from engine.drawing import draw_tokens, take
from engine.logits_processors import apply_logits_processors, has_processors
from engine.logprobs import prompt_logprobs
from engine.messages import TokenLogprobs
from engine.noise import uniforms
from engine.sequence import DraftedSequence, Sampled
from engine.top_tokens import Peaks


@dataclass(frozen=True, slots=True)
class Sample:
    """What was sampled for one row."""

    # None: no number in the logits to sample by, or a row behind a draft that is not to be taken
    token_id: int | None
    logprobs: TokenLogprobs | None  # where the sequence asks for them


class Sampler:
    """Samples the next token of each sequence of a batch. Holds no state between calls."""

    def __init__(
        self, vocab_size: int, eos_token_ids: Items[int], num_valid_tokens: int | None = None
    ) -> None:
        """Ids from `num_valid_tokens` on pad the vocabulary and are never sampled.

        Raises ValueError when an eos id or `num_valid_tokens` is outside the vocabulary.
        """
        self._vocab_size = vocab_size
        self._num_valid_tokens = vocab_size if num_valid_tokens is None else num_valid_tokens
        self._eos_token_ids = tuple(eos_token_ids)
        if not 0 < self._num_valid_tokens <= vocab_size:
            raise ValueError(f"{num_valid_tokens} valid tokens in a vocabulary of {vocab_size}")
        if not all(0 <= token_id < vocab_size for token_id in self._eos_token_ids):
            raise ValueError(f"eos ids {self._eos_token_ids} in a vocabulary of {vocab_size}")

    def sample(self, logits: torch.Tensor, sequences: Items[Sampled]) -> list[Sample]:
        """Return one sample for each row of `logits` (n, vocab) float32, which may be modified.

        Row i is the distribution of the token at position `num_tokens` of sequence i. A row with
        NaN or +Inf, or with nothing left to sample, gives a sample without token and leaves the
        others alone. Drafted sequences come right after their sequence, with one draft, two, and so
        on; from the first on whose drafts were not sampled they get no token.
        Raises ValueError when the shape is not one row of the vocabulary's size per sequence.
        """
        if logits.shape != (len(sequences), self._vocab_size):
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} for {len(sequences)} sequences and a "
                f"vocabulary of {self._vocab_size}"
            )
        if not sequences:
            return []
        peaks = Peaks.of(logits, self._num_valid_tokens)
        are_usable = peaks.are_usable
        wanting = [row for row, seq in enumerate(sequences) if seq.sampling.logprobs is not None]
        raw = take(logits, wanting) if wanting else logits[:0]
        if any(map(has_processors, sequences)):
            raw = raw.clone()  # what follows changes the logits in place
            apply_logits_processors(logits, sequences, self._eos_token_ids)
            peaks = Peaks.of(logits, self._num_valid_tokens)
            are_usable = are_usable & peaks.are_usable
        chosen = self._token_ids(logits[:, : self._num_valid_tokens], peaks, sequences)
        token_ids: list[int] = torch.where(are_usable, chosen, -1).tolist()
        token_ids = _verified(token_ids, sequences)
        logprobs = self._logprobs(raw, wanting, token_ids, sequences)
        return [
            Sample(token_id if token_id >= 0 else None, logprobs.get(row))
            for row, token_id in enumerate(token_ids)
        ]

    def _token_ids(
        self, logits: torch.Tensor, peaks: Peaks, sequences: Items[Sampled]
    ) -> torch.Tensor:
        """Return a token id for each row, as (n,) int64; any id where the row is not usable."""
        drawn = [row for row, seq in enumerate(sequences) if seq.sampling.temperature > 0]
        if not drawn:
            return peaks.ids
        result = peaks.ids.clone()
        noise = uniforms(
            [sequences[row].sampling.seed for row in drawn],
            [sequences[row].num_tokens for row in drawn],
        )
        result[drawn] = draw_tokens(
            take(logits, drawn),
            peaks.values[drawn],
            [sequences[row].sampling for row in drawn],
            torch.from_numpy(noise).to(logits.device),
        )
        return result

    def _logprobs(
        self,
        raw: torch.Tensor,
        wanting: list[int],
        token_ids: list[int],
        sequences: Items[Sampled],
    ) -> dict[int, TokenLogprobs]:
        """Return the logprobs of the rows `wanting`, of which `raw` holds one row each, by row."""
        groups: dict[int, list[int]] = {}  # number of top tokens -> rows of `raw`
        for raw_row, row in enumerate(wanting):
            num_top = sequences[row].sampling.logprobs
            if num_top is not None and token_ids[row] >= 0:
                groups.setdefault(num_top, []).append(raw_row)
        result: dict[int, TokenLogprobs] = {}
        for num_top, raw_rows in groups.items():
            rows = [wanting[raw_row] for raw_row in raw_rows]
            values = prompt_logprobs(
                take(raw, raw_rows),
                [token_ids[row] for row in rows],
                num_top,
                self._num_valid_tokens,
            )
            result.update(zip(rows, values, strict=True))
        return result


def _verified(token_ids: list[int], sequences: Items[Sampled]) -> list[int]:
    """What to take of what was sampled in each row, -1 for nothing."""
    taken: list[int] = []
    for token_id, sampled in zip(token_ids, sequences, strict=True):
        if isinstance(sampled, DraftedSequence):
            grammar, draft = sampled.grammar, sampled.drafts[-1]
            if taken[-1] != draft or (grammar is not None and grammar.is_complete):
                taken.append(-1)
                continue
            if grammar is not None:
                grammar.take_draft(draft)
        taken.append(_vetted(token_id, sampled))
    return taken


def _vetted(token_id: int, sequence: Sampled) -> int:
    """The token of a sequence, whose grammar may have to be completed: see grammar_closing.py."""
    if token_id < 0 or sequence.grammar is None:
        return token_id
    num_left = sequence.sampling.max_tokens - sequence.num_output_tokens
    return sequence.grammar.vet(token_id, num_left)
