"""The SwiGLU feed-forward network (arXiv:2002.05202)."""

import torch

from engine.backends.base import Backend
from engine.layers.linear import Linear
from engine.models.config import DecoderConfig


class MLP:
    """gate_up holds the rows of gate and up in this order."""

    __slots__ = ("_backend", "down", "gate_up")

    def __init__(
        self, backend: Backend, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        hidden_size, width = config.hidden_size, config.intermediate_size
        self._backend = backend
        self.gate_up = Linear(backend, hidden_size, 2 * width, dtype=dtype, device=device)
        self.down = Linear(backend, width, hidden_size, dtype=dtype, device=device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (num_tokens, hidden_size) -> the same shape."""
        return self.down(self._backend.silu_mul(self.gate_up(x)))
