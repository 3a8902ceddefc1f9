"""A matrix product with an optional bias."""

import torch

from engine.backends.base import Backend


class Linear:
    """weight (out_features, in_features), bias (out_features,) or None; made unfilled."""

    __slots__ = ("backend", "bias", "weight")

    def __init__(
        self,
        backend: Backend,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.backend = backend
        self.weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.bias = torch.empty(out_features, dtype=dtype, device=device) if bias else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.backend.linear(x, self.weight, self.bias)

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
