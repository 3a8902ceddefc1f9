"""RMSNorm (arXiv:1910.07467), alone or fused with the residual addition before it."""

import torch

from engine.backends.base import Backend
from engine.models.config import DecoderConfig


class RMSNorm:
    """weight (size,). Made without memory: engine/weights.py fills it."""

    __slots__ = ("_backend", "_eps", "_scales_in_float32", "weight")

    def __init__(
        self,
        backend: Backend,
        size: int,
        config: DecoderConfig,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._backend = backend
        self._eps = config.rms_norm_eps
        self._scales_in_float32 = config.norm_scales_in_float32
        self.weight = torch.empty(size, dtype=dtype, device="meta")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._backend.rms_norm(x, self.weight, self._eps, self._scales_in_float32)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (norm(x + residual), x + residual)."""
        return self._backend.add_rms_norm(
            x, residual, self.weight, self._eps, self._scales_in_float32
        )

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}
