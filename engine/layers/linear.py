"""A matrix product with an optional bias."""

from collections.abc import Callable

import torch

from engine.backends.base import Backend
from engine.quant.groupwise import QuantizedWeight


class Linear:
    """weight (out_features, in_features), plain or quantized; bias (out_features,) or None.

    Made without memory: engine/weights.py puts the real tensors in, and `gather` where one rank's
    weight multiplies the inputs of all ranks.
    """

    __slots__ = ("backend", "bias", "gather", "weight")

    def __init__(
        self,
        backend: Backend,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
    ) -> None:
        self.backend = backend
        self.gather: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.weight: torch.Tensor | QuantizedWeight = torch.empty(
            out_features, in_features, dtype=dtype, device="meta"
        )
        self.bias = torch.empty(out_features, dtype=dtype, device="meta") if bias else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.gather is not None:
            x = self.gather(x)
        return self.backend.linear(x, self.weight, self.bias)

    def parameters(self) -> dict[str, torch.Tensor]:
        """What has to be filled, and is plain before it is."""
        parameters = {"weight": self.weight} if isinstance(self.weight, torch.Tensor) else {}
        return parameters | ({} if self.bias is None else {"bias": self.bias})
