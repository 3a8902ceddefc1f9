"""One draw per row from a discrete distribution, by inverting its cumulated weights.

Weights are whole numbers whose sum float64 holds exactly (see engine/truncation.py), so cumulating
them in blocks, over the whole vocabulary or over candidates only gives the same sums, and the draw
depends on nothing else in the batch.
"""

import torch

_BLOCK = 512


def draw(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the place drawn in each row of `weights` (n, m), as (n,) int64.

    It is the first where the cumulated weight passes noise * total; `noise` (n, 1) float64 is in
    [0, 1).

    A place with weight 0 is never drawn. A row that sums to 0 or NaN gives some place within it.
    """
    width = weights.shape[-1]
    sums = _block_sums(weights).cumsum(-1)  # (n, num_blocks), float64
    totals = sums[:, -1:]
    # noise is at most 1 - 2**-53, so the rounded product stays below the total
    target = (noise * totals).floor_()  # (n, 1)
    blocks = (sums <= target).sum(-1, keepdim=True).clamp_(max=sums.shape[-1] - 1)
    before = torch.where(blocks > 0, sums.gather(-1, (blocks - 1).clamp(min=0)), 0.0)
    places = blocks * _BLOCK + torch.arange(_BLOCK, device=weights.device)  # (n, _BLOCK)
    within = weights.gather(-1, places.clamp(max=width - 1)).double()
    within = within.masked_fill_(places >= width, 0.0).cumsum(-1) + before
    offsets = (within <= target).sum(-1, keepdim=True)
    return (blocks * _BLOCK + offsets).squeeze(-1).clamp_(max=width - 1)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """Return float64 sums (n, num_blocks) of runs of `_BLOCK` weights; the last may be shorter."""
    width = weights.shape[-1]
    num_full = width // _BLOCK
    sums = []
    if num_full:
        full = weights[:, : num_full * _BLOCK].view(weights.shape[0], num_full, _BLOCK)
        sums.append(full.sum(-1, dtype=torch.float64))
    if num_full * _BLOCK < width:
        sums.append(weights[:, num_full * _BLOCK :].sum(-1, keepdim=True, dtype=torch.float64))
    return torch.cat(sums, dim=-1)
