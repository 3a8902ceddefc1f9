"""The token embedding."""

import torch

from engine.parallel import TensorParallel
from engine.quant.groupwise import QuantizedTable


class Embedding:
    """weight (len(vocabulary), hidden_size), plain or quantized: the ids whose rows this rank has.

    Made without memory: engine/weights.py fills it.
    """

    __slots__ = ("_dtype", "_parallel", "_vocabulary", "weight")

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
        self._dtype = dtype
        self.weight: torch.Tensor | QuantizedTable = torch.empty(
            len(vocabulary), hidden_size, dtype=dtype, device="meta"
        )

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids (n,) int64 -> (n, hidden_size)."""
        if self._parallel.size == 1:
            return self._take_rows(token_ids)
        first, last = self._vocabulary.start, self._vocabulary.stop - 1
        rows = self._take_rows(token_ids.clamp(first, last) - first)
        is_elsewhere = (token_ids < first) | (token_ids > last)
        return self._parallel.all_reduce(rows.masked_fill_(is_elsewhere.unsqueeze(1), 0))

    def _take_rows(self, rows: torch.Tensor) -> torch.Tensor:
        if isinstance(self.weight, torch.Tensor):
            return self.weight.index_select(0, rows)
        return self.weight.take_rows(rows, self._dtype)

    def parameters(self) -> dict[str, torch.Tensor]:
        """What has to be filled, and is plain before it is."""
        return {"weight": self.weight} if isinstance(self.weight, torch.Tensor) else {}
