"""top_k, top_p and min_p: which tokens of a row stay, found among its largest logits.

Each filter is a threshold on the logit, so a token stays or goes with all its ties and no order
among ties matters. Weights are whole numbers in floating point, with a row's total below 2**53:
float64 adds them exactly in any order. That is why a result depends neither on the other rows nor
on how many of the largest were looked at.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from engine.messages import SamplingParams
from engine.top_tokens import largest

_NUM_CANDIDATES = (64, 1024, 16384)  # tried in turn, then the whole vocabulary
_SMALLEST_TEMPERATURE = 1e-30  # a normal float32; all but the maximum and its ties weigh nothing


@dataclass(frozen=True, slots=True)
class Truncation:
    """Sampling params of n rows that are not greedy, on the device of the logits; all (n, 1)."""

    temperatures: torch.Tensor  # float32
    top_k: torch.Tensor  # int64; the vocabulary's size where off
    top_p: torch.Tensor  # float64
    min_p: torch.Tensor  # float32
    maxima: torch.Tensor  # float32, the largest logit of each row
    vocab_size: int

    @classmethod
    def of(
        cls, params: Items[SamplingParams], vocab_size: int, maxima: torch.Tensor
    ) -> "Truncation":
        """Gather the numbers of `params`, one for each of `maxima` (n,)."""
        columns = torch.tensor(
            [
                [
                    max(row.temperature, _SMALLEST_TEMPERATURE),
                    row.top_k if has_top_k(row, vocab_size) else vocab_size,
                    row.top_p,
                    row.min_p,
                ]
                for row in params
            ],
            dtype=torch.float64,
        ).to(maxima.device)
        temperatures, top_k, top_p, min_p = columns.unsqueeze(1).unbind(-1)
        return cls(
            temperatures.float(),
            top_k.long(),
            top_p,
            min_p.float(),
            maxima.unsqueeze(-1),
            vocab_size,
        )

    def take(self, rows: list[int]) -> "Truncation":
        """Return those of `rows`."""
        return Truncation(
            self.temperatures[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.maxima[rows],
            self.vocab_size,
        )

    @property
    def scale(self) -> float:
        """The weight of a row's most likely token; `vocab_size` of them are at most 2**53."""
        return 2.0 ** (53 - math.ceil(math.log2(max(self.vocab_size, 2))))

    @property
    def min_weights(self) -> torch.Tensor:
        """The least weight that min_p lets a token have, (n, 1) float32."""
        return self.min_p * self.scale


def has_top_k(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size


def weights_of(logits: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    """Return whole-numbered weights (n, m) float32 of `logits` (n, m): exp(logit / t), scaled."""
    shifted = (logits - truncation.maxima).div_(truncation.temperatures)
    return shifted.exp_().mul_(truncation.scale).round_()


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens looked at, most likely first."""

    ids: torch.Tensor  # (n, m) int64
    weights: torch.Tensor  # (n, m) float64, 0 for those filtered out
    is_complete: torch.Tensor  # (n,) bool: no token outside `ids` would stay


def candidates(
    logits: torch.Tensor, totals: torch.Tensor, truncation: Truncation, count: int
) -> Candidates:
    """Filter the `count` largest of each row of `logits` (n, vocab).

    `totals` (n, 1) float64 is the weight of the whole row; only rows without top_k use it.

    The filters run in the order of transformers: temperature, top_k, top_p over what top_k left,
    min_p relative to the most likely token. The other order of top_k and top_p would let more
    tokens through.
    """
    vocab_size = logits.shape[-1]
    values, ids = largest(logits, count)
    weights = weights_of(values, truncation).double()
    is_top_k = truncation.top_k < vocab_size
    kth = values.gather(-1, truncation.top_k.clamp(max=count) - 1)
    kept = ~is_top_k | (values >= kth)
    within = weights * kept
    totals = torch.where(is_top_k, within.sum(-1, keepdim=True), totals)
    # a token stays when those before it do not yet reach top_p: the first always does
    before = within.cumsum(-1) - within
    num_kept = (kept & (before < truncation.top_p * totals)).sum(-1, keepdim=True)
    threshold = values.gather(-1, (num_kept - 1).clamp_(min=0))  # 0 only in a row with NaN
    min_weight = truncation.min_weights
    kept &= (values >= threshold) & (weights >= min_weight)
    last, last_weight = values[:, -1:], weights[:, -1:]
    is_complete = torch.where(
        is_top_k,
        (truncation.top_k <= count) & (kth > last),
        (threshold > last) | (last_weight < min_weight),
    )
    # tokens after one without weight have none either; a row with NaN or Inf is given up
    is_complete |= (last_weight == 0) | ~truncation.maxima.isfinite()
    return Candidates(ids, weights * kept, is_complete.squeeze(-1) | (count == vocab_size))


def candidate_counts(vocab_size: int) -> list[int]:
    """Return how many of the largest logits to look at: first few, then more, at last all."""
    return [count for count in _NUM_CANDIDATES if count < vocab_size] + [vocab_size]
