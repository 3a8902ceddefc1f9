"""RMSNorm (arXiv:1910.07467), alone or fused with the residual addition before it."""

import torch

from engine.backends.base import Backend


class RMSNorm:
    """weight (size,); not filled by the constructor."""

    __slots__ = ("backend", "eps", "weight")

    def __init__(
        self, backend: Backend, size: int, eps: float, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.backend = backend
        self.eps = eps
        self.weight = torch.empty(size, dtype=dtype, device=device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.backend.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (norm(x + residual), x + residual)."""
        return self.backend.add_rms_norm(x, residual, self.weight, self.eps)

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}
