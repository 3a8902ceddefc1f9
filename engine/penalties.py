"""Repetition, presence and frequency penalties, from a count of each token that a sequence holds.

The count is numpy and grows with the sequence: a step costs as much as the tokens that are new to
it. It is a function of `sequence.token_ids` alone, so a sequence that was preempted needs no care.
"""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine.messages import SamplingParams
from engine.sequence import DraftedSequence, Sampled, Sequence


class PenaltyState:
    """The distinct tokens of one sequence and how often each is in its output."""

    __slots__ = (
        "_drafts",
        "_index",
        "_num_distinct",
        "_num_seen",
        "_output_counts",
        "_token_ids",
    )

    def __init__(self) -> None:
        self._num_seen = 0
        self._drafts: list[int] = []  # counted behind those that were seen
        self._num_distinct = 0  # without the drafts
        self._index: dict[int, int] = {}  # token id -> its place in the two arrays
        self._token_ids = np.empty(64, dtype=np.int64)
        self._output_counts = np.zeros(64, dtype=np.int64)

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """Distinct token ids of prompt and output, in the order of their first appearance."""
        return self._token_ids[: len(self._index)]

    @property
    def output_counts(self) -> npt.NDArray[np.int64]:
        """How often each of `token_ids` is in the output; 0 where only the prompt holds it."""
        return self._output_counts[: len(self._index)]

    def update(self, sequence: Sequence, drafts: Items[int] = ()) -> None:
        """Count the tokens that came since the last call, and `drafts` until the next call.

        The arrays that `token_ids` has given out stay as they are while drafts are only added.
        """
        num_kept = len(self._drafts)
        if self._num_seen < sequence.num_tokens or list(drafts[:num_kept]) != self._drafts:
            self._forget_drafts()
            num_kept = 0
        for position in range(self._num_seen, sequence.num_tokens):
            place = self._place(sequence.token_ids[position])
            if position >= sequence.num_prompt_tokens:
                self._output_counts[place] += 1
        self._num_seen = sequence.num_tokens
        if num_kept == 0:
            self._num_distinct = len(self._index)
        for draft in drafts[num_kept:]:
            self._output_counts[self._place(draft)] += 1
            self._drafts.append(draft)

    def _forget_drafts(self) -> None:
        for draft in self._drafts:
            self._output_counts[self._index[draft]] -= 1
        self._drafts.clear()
        while len(self._index) > self._num_distinct:
            self._index.popitem()

    def _place(self, token_id: int) -> int:
        place = self._index.setdefault(token_id, len(self._index))
        if place == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.empty_like(self._token_ids)])
            self._output_counts = np.concatenate(
                [self._output_counts, np.zeros_like(self._output_counts)]
            )
        self._token_ids[place] = token_id
        return place


def has_penalties(sampling: SamplingParams) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


class _Entries(NamedTuple):
    """The logits that one sequence's penalties change, all (m,)."""

    rows: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float32]  # repetition penalty
    offsets: npt.NDArray[np.float32]  # presence and frequency penalty


def apply_penalties(logits: torch.Tensor, sequences: Items[Sampled]) -> None:
    """Change `logits` (n, vocab) in place, row i by the penalties of sequence i.

    Repetition comes first (CTRL, arXiv:1909.05858: a positive logit is divided, a negative one
    multiplied), over prompt and output; then presence and frequency over the output, as OpenAI
    defines them.
    """
    entries = [
        _entries(row, sequence)
        for row, sequence in enumerate(sequences)
        if has_penalties(sequence.sampling)
    ]
    if not entries:
        return
    # one gather and one scatter for the whole batch
    rows, token_ids, factors, offsets = (
        torch.from_numpy(np.concatenate(column)).to(logits.device)
        for column in zip(*entries, strict=True)
    )
    values = logits[rows, token_ids]
    values = torch.where(values > 0, values / factors, values * factors)
    logits[rows, token_ids] = values - offsets


def _entries(row: int, sampled: Sampled) -> _Entries:
    if isinstance(sampled, DraftedSequence):
        sequence, drafts = sampled.sequence, sampled.drafts
    else:
        sequence, drafts = sampled, ()
    if sequence.penalties is None:
        sequence.penalties = PenaltyState()
    state, sampling = sequence.penalties, sequence.sampling
    state.update(sequence, drafts)
    token_ids, counts = state.token_ids, state.output_counts
    offsets = sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts
    return _Entries(
        np.full(len(token_ids), row, dtype=np.int64),
        token_ids,
        np.full(len(token_ids), sampling.repetition_penalty, dtype=np.float32),
        offsets.astype(np.float32),
    )
