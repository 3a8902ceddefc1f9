"""A random token for each row of a batch, each group of rows drawn the cheapest way.

Rows with top_k or top_p look at their largest logits only; the others weigh the whole vocabulary
and sort nothing. Called by the sampler, for the rows that are not greedy.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Items

import torch

from engine.inverse_cdf import draw
from engine.messages import SamplingParams
from engine.truncation import Truncation, candidate_counts, candidates, has_top_k, weights_of

# weights of one slice of rows: on a CPU what stays in its cache, on a GPU 256 MiB
_SLICE_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}


def draw_tokens(
    logits: torch.Tensor, maxima: torch.Tensor, params: Items[SamplingParams], noise: torch.Tensor
) -> torch.Tensor:
    """Return a token id drawn from each row of `logits` (n, vocab) float32, as (n,) int64.

    `maxima` (n,) are the largest logits, `noise` (n,) float64 is in [0, 1). Every temperature is
    above 0. A row whose maximum is not finite gives some id.
    """
    vocab_size = logits.shape[-1]
    truncation = Truncation.of(params, vocab_size, maxima)
    noise = noise.unsqueeze(-1)
    totals = torch.zeros_like(noise)  # the weight of all tokens, known where top_p asks for it
    token_ids = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    whole, with_total, truncated = [], [], []
    for row, needs in enumerate(params):
        if has_top_k(needs, vocab_size):
            truncated.append(row)
        elif needs.top_p < 1:
            truncated.append(row)
            with_total.append(row)
        else:
            whole.append(row)
    for rows in _slices(whole, logits):
        weights = weights_of(take(logits, rows), truncation.take(rows))
        weights *= weights >= truncation.take(rows).min_weights
        token_ids[rows] = draw(weights, noise[rows])
    for rows in _slices(with_total, logits):
        weights = weights_of(take(logits, rows), truncation.take(rows))
        totals[rows] = weights.sum(-1, keepdim=True, dtype=torch.float64)
    for count in candidate_counts(vocab_size):
        # looking at fewer than top_k tokens settles nothing
        rows = [row for row in truncated if params[row].top_k < count or count == vocab_size]
        if not rows:
            continue
        found = candidates(take(logits, rows), totals[rows], truncation.take(rows), count)
        token_ids[rows] = _draw_candidate(found.ids, found.weights, noise[rows])
        is_complete = dict(zip(rows, found.is_complete.tolist(), strict=True))
        truncated = [row for row in truncated if not is_complete.get(row, False)]
    return token_ids


def take(tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return `rows`, ascending, of `tensor`: without a copy where they are neighbours."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return tensor[rows[0] : rows[-1] + 1]
    return tensor[rows]


def _draw_candidate(ids: torch.Tensor, weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return one of each row of `ids` (n, m), in order of id as in a draw from all tokens."""
    ids, order = ids.sort(-1)
    places = draw(weights.gather(-1, order), noise)
    return ids.gather(-1, places.unsqueeze(-1)).squeeze(-1)


def _slices(rows: list[int], logits: torch.Tensor) -> Iterator[list[int]]:
    step = max(1, _SLICE_ELEMENTS[logits.device.type] // logits.shape[-1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
