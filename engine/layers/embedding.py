"""The token embedding."""

import torch


class Embedding:
    """weight (vocab_size, hidden_size). Made without memory: engine/weights.py fills it."""

    __slots__ = ("weight",)

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype) -> None:
        self.weight = torch.empty(vocab_size, hidden_size, dtype=dtype, device="meta")

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids (n,) int64 -> (n, hidden_size)."""
        return self.weight.index_select(0, token_ids)

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}
