"""Grammars' masks on logits: what may not come next gets -inf.

A row for each sequence that has a grammar; the vocabulary is unpacked and masked for all of them at
once. Called by engine/logits_processors.py after all that adds to logits, so nothing gets past it.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.grammar import GrammarState
from engine.sequence import DraftedSequence, Sampled


@dataclass(frozen=True, slots=True)
class GrammarMasks:
    """`allowed` has a row for each of `rows`, up to the number of the tokens that there are."""

    rows: list[int]
    allowed: npt.NDArray[np.uint8]  # (len(rows), num_tokens), 0 or 1

    @classmethod
    def of(cls, sequences: Items[Sampled]) -> "GrammarMasks":
        """Compute what may come next in each sequence that has a grammar."""
        states = [(row, seq, seq.grammar) for row, seq in enumerate(sequences) if seq.grammar]
        packed = [_mask(sequence, state) for _, sequence, state in states]
        allowed = np.unpackbits(
            np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(packed), -1),
            axis=1,
            bitorder="little",
        )
        return cls([row for row, _, _ in states], allowed)

    def is_end(self, row: int, stop_token_ids: Iterable[int]) -> bool:
        """Whether the row's sequence has a grammar, by which only these tokens may come next."""
        if row not in self.rows:
            return False
        others = self.allowed[self.rows.index(row)].copy()
        others[[token_id for token_id in stop_token_ids if 0 <= token_id < len(others)]] = 0
        return not others.any()

    def apply(self, logits: torch.Tensor) -> None:
        """Change `logits` (n, vocab) in place."""
        num_tokens = min(self.allowed.shape[1], logits.shape[1])
        refused = torch.from_numpy(self.allowed[:, :num_tokens] == 0).to(logits.device)
        if len(self.rows) == len(logits):
            logits[:, :num_tokens].masked_fill_(refused, float("-inf"))
            logits[:, num_tokens:] = float("-inf")
            return
        rows = torch.tensor(self.rows, device=logits.device)
        masked = logits[rows]
        masked[:, :num_tokens].masked_fill_(refused, float("-inf"))
        masked[:, num_tokens:] = float("-inf")
        logits[rows] = masked


def _mask(sequence: Sampled, state: GrammarState) -> bytes:
    if isinstance(sequence, DraftedSequence):
        return state.mask_behind(sequence.drafts)
    state.update(sequence.output_ids)
    return state.mask()
