"""Tensor parallelism: what one rank of a group knows of the others, and the collectives.

The weights of every matrix are cut between the ranks as in Megatron-LM (arXiv:1909.08053): the
first matrix of attention and of the feed-forward network by rows, the second by columns, so that
one sum over the ranks ends each of them. Which tensor is cut how is engine/sharding.py.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """One rank. A group of one does nothing; a larger one uses torch's default process group."""

    rank: int = 0
    size: int = 1

    def share(self, total: int, unit: int = 1) -> range:
        """This rank's part of `total` rows or columns, in whole units but for the very last."""
        return share_of(self.rank, self.size, total, unit)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of `x` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def all_gather(self, x: torch.Tensor, total: int, unit: int) -> torch.Tensor:
        """The columns of all ranks side by side: (n, len(share)) -> (n, total) on every rank."""
        if self.size == 1:
            return x
        widths = [len(share_of(rank, self.size, total, unit)) for rank in range(self.size)]
        widest = max(widths)  # collectives want equal shapes
        parts = [x.new_empty(x.shape[0], widest) for _ in widths]
        dist.all_gather(parts, F.pad(x, (0, widest - x.shape[1])))
        return torch.cat([part[:, :n] for part, n in zip(parts, widths, strict=True)], dim=1)

    def minimum(self, value: int) -> int:
        """The least of the ranks' values, on every rank."""
        if self.size == 1:
            return value
        values: list[int | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return min(value for value in values if value is not None)


def share_of(rank: int, size: int, total: int, unit: int) -> range:
    """See TensorParallel.share."""
    num_units = -(-total // unit)
    start, stop = (num_units * i // size * unit for i in (rank, rank + 1))
    return range(min(start, total), min(stop, total))


ALONE = TensorParallel()
