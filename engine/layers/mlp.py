"""The SwiGLU feed-forward network (arXiv:2002.05202)."""

import torch

from engine.backends.base import Backend
from engine.layers.linear import Linear
from engine.layers.module import Module


class MLP:
    """gate_up holds the rows of gate and up in this order."""

    __slots__ = ("_backend", "down", "gate_up")

    def __init__(
        self,
        backend: Backend,
        hidden_size: int,
        intermediate_size: int,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._backend = backend
        self.gate_up = Linear(backend, hidden_size, 2 * intermediate_size, dtype=dtype)
        self.down = Linear(backend, intermediate_size, hidden_size, dtype=dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (num_tokens, hidden_size) -> the same shape."""
        return self.down(self._backend.silu_mul(self.gate_up(x)))

    def parts(self) -> dict[str, Module]:
        return {"gate_up": self.gate_up, "down": self.down}
