"""Logits to token ids: one sample per sequence, each by its own sampling params.

A token is a function of the sequence's seed, its position and its distribution alone: a sequence
gets the same token alone and in any batch. Knows nothing of stopping, text or the KV cache. Called
by the model runner after each forward pass.

Order: logprobs of the raw distribution; logit bias, min_tokens, penalties; then temperature, top_k,
top_p, min_p. What a grammar needs to be completed in time replaces what was drawn.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from engine.drawing import draw_tokens, take
from engine.logits_processors import apply_logits_processors, has_processors
from engine.logprobs import prompt_logprobs
from engine.messages import TokenLogprobs
from engine.noise import uniforms
from engine.sequence import Sequence
from engine.top_tokens import argmax


@dataclass(frozen=True, slots=True)
class Sample:
    """What was sampled for one sequence."""

    token_id: int | None  # None: no number in the logits to sample by, this sequence fails
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

    def sample(self, logits: torch.Tensor, sequences: Items[Sequence]) -> list[Sample]:
        """Return one sample for each row of `logits` (n, vocab) float32, which may be modified.

        Row i is the distribution of the token at position `num_tokens` of sequence i. A row with
        NaN or +Inf, or with nothing left to sample, gives a sample without token and leaves the
        others alone.
        Raises ValueError when the shape is not one row of the vocabulary's size per sequence.
        """
        if logits.shape != (len(sequences), self._vocab_size):
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} for {len(sequences)} sequences and a "
                f"vocabulary of {self._vocab_size}"
            )
        if not sequences:
            return []
        raw_maxima = logits.amax(-1)  # NaN or +Inf where a row holds one
        wanting = [row for row, seq in enumerate(sequences) if seq.sampling.logprobs is not None]
        raw = take(logits, wanting) if wanting else logits[:0]
        if any(map(has_processors, sequences)):
            raw = raw.clone()  # what follows changes the logits in place
            apply_logits_processors(logits, sequences, self._eos_token_ids)
        valid = logits[:, : self._num_valid_tokens]
        maxima = valid.amax(-1)
        is_usable = raw_maxima.isfinite() & maxima.isfinite()
        token_ids: list[int] = torch.where(
            is_usable, self._token_ids(valid, maxima, sequences), -1
        ).tolist()
        token_ids = list(map(_vetted, token_ids, sequences))
        logprobs = self._logprobs(raw, wanting, token_ids, sequences)
        return [
            Sample(token_id if token_id >= 0 else None, logprobs.get(row))
            for row, token_id in enumerate(token_ids)
        ]

    def _token_ids(
        self, logits: torch.Tensor, maxima: torch.Tensor, sequences: Items[Sequence]
    ) -> torch.Tensor:
        """Return a token id for each row, as (n,) int64; any id where the row is not usable."""
        drawn = [row for row, seq in enumerate(sequences) if seq.sampling.temperature > 0]
        if not drawn:
            return argmax(logits)
        result = torch.empty(len(sequences), dtype=torch.int64, device=logits.device)
        greedy = [row for row, seq in enumerate(sequences) if seq.sampling.temperature == 0]
        if greedy:
            result[greedy] = argmax(take(logits, greedy))
        noise = uniforms(
            [sequences[row].sampling.seed for row in drawn],
            [sequences[row].num_tokens for row in drawn],
        )
        result[drawn] = draw_tokens(
            take(logits, drawn),
            maxima[drawn],
            [sequences[row].sampling for row in drawn],
            torch.from_numpy(noise).to(logits.device),
        )
        return result

    def _logprobs(
        self,
        raw: torch.Tensor,
        wanting: list[int],
        token_ids: list[int],
        sequences: Items[Sequence],
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


def _vetted(token_id: int, sequence: Sequence) -> int:
    """The token of a sequence, whose grammar may have to be completed: see grammar_closing.py."""
    if token_id < 0 or sequence.grammar is None:
        return token_id
    num_left = sequence.sampling.max_tokens - sequence.num_output_tokens
    return sequence.grammar.vet(token_id, num_left)
