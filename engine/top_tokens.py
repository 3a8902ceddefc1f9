"""The largest logits of each row, found through the maxima of blocks of tokens.

The k largest values of a row lie in the k blocks with the largest maxima, and block maxima are one
vectorised pass: on a CPU this is 3 to 10 times faster than torch.topk or torch.argmax over 150,000
tokens. Knows nothing of sampling.
"""

from dataclasses import dataclass

import torch

from engine.kernels.peaks import find_peaks

_BLOCK = 128
_NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest of the valid logits of n rows; all (n,)."""

    ids: torch.Tensor  # int64, the lowest of those that tie
    values: torch.Tensor  # float32
    are_usable: torch.Tensor  # bool: it is finite, and no logit of the row is NaN or +Inf

    @classmethod
    def of(cls, logits: torch.Tensor, num_valid: int) -> "Peaks":
        """Of `logits` (n, vocab) float32; ids from `num_valid` on only pad the vocabulary."""
        found = find_peaks(logits, num_valid)
        if found is not None:
            return cls(*found)
        valid = logits[:, :num_valid]
        values = valid.amax(-1)  # NaN or +Inf where a row holds one
        return cls(argmax(valid), values, logits.amax(-1).isfinite() & values.isfinite())


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the id of the largest of each row of `logits` (n, vocab) as (n,) int64.

    The lowest id wins ties.
    """
    # argmax takes the first of equals: the first block, then the first token in it
    blocks = _block_maxima(logits).argmax(-1, keepdim=True)  # (n, 1)
    ids = _ids_of_blocks(blocks, logits.shape[-1])  # (n, _BLOCK) ascending
    within = _gather(logits, ids).argmax(-1, keepdim=True)
    return ids.gather(-1, within).squeeze(-1)


def largest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and ids (n, count) of the largest of each row of `logits` (n, vocab).

    They are in descending order. Which ids stand for values that tie is unspecified: a caller whose
    result must not depend on it looks at whether the last value is below the one it cares for.
    """
    vocab_size = logits.shape[-1]
    if count * 4 * _BLOCK > vocab_size:  # most blocks would be gathered: nothing to gain
        return logits.topk(count, dim=-1)
    blocks = _block_maxima(logits).topk(count, dim=-1, sorted=False).indices  # (n, count)
    ids = _ids_of_blocks(blocks, vocab_size)  # (n, count * _BLOCK)
    values, within = _gather(logits, ids).topk(count, dim=-1)
    return values, ids.gather(-1, within)


def _block_maxima(logits: torch.Tensor) -> torch.Tensor:
    """Return maxima (n, num_blocks) of runs of `_BLOCK` tokens; the last may be shorter."""
    num_rows, vocab_size = logits.shape
    num_full = vocab_size // _BLOCK
    # a view also where the rows are cut from a wider, padded vocabulary
    maxima = logits[:, : num_full * _BLOCK].view(num_rows, num_full, _BLOCK).amax(-1)
    if num_full * _BLOCK == vocab_size:
        return maxima
    return torch.cat([maxima, logits[:, num_full * _BLOCK :].amax(-1, keepdim=True)], dim=-1)


def _ids_of_blocks(blocks: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return the ids of each block, in the order given, those past the end as `vocab_size`."""
    ids = blocks.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK, device=blocks.device)
    return ids.flatten(-2).clamp_(max=vocab_size)


def _gather(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return `logits` at `ids`, and -Inf where the id is past the vocabulary."""
    last = logits.shape[-1] - 1
    return logits.gather(-1, ids.clamp(max=last)).masked_fill_(ids > last, _NEGATIVE_INFINITY)
