"""The token embedding."""

import torch

from engine.parallel import TensorParallel


class Embedding:
    """weight (len(vocabulary), hidden_size): the ids of which this rank has the rows.

    Made without memory: engine/weights.py fills it.
    """

    __slots__ = ("_parallel", "_vocabulary", "weight")

    def __init__(
        self,
        vocabulary: range,
        hidden_size: int,
        parallel: TensorParallel,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._vocabulary = vocabulary
        self._parallel = parallel
        self.weight = torch.empty(len(vocabulary), hidden_size, dtype=dtype, device="meta")

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids (n,) int64 -> (n, hidden_size)."""
        if self._parallel.size == 1:
            return self.weight.index_select(0, token_ids)
        first, last = self._vocabulary.start, self._vocabulary.stop - 1
        rows = self.weight.index_select(0, token_ids.clamp(first, last) - first)
        is_elsewhere = (token_ids < first) | (token_ids > last)
        return self._parallel.all_reduce(rows.masked_fill_(is_elsewhere.unsqueeze(1), 0))

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}
