"""Grouped-query attention with rotary positions over the paged KV cache."""

import torch

from engine.backends.base import Backend, StepAttention
from engine.layers.linear import Linear
from engine.models.config import DecoderConfig


class Attention:
    """qkv holds the rows of q, k and v in this order, whole heads each."""

    __slots__ = ("_backend", "_head_dim", "_num_heads", "_num_kv_heads", "output", "qkv")

    def __init__(
        self, backend: Backend, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._backend = backend
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        width = config.num_heads * config.head_dim
        qkv_width = width + 2 * config.num_kv_heads * config.head_dim
        self.qkv = Linear(
            backend, config.hidden_size, qkv_width, bias=config.qkv_bias, dtype=dtype, device=device
        )
        self.output = Linear(
            backend, width, config.hidden_size, bias=config.output_bias, dtype=dtype, device=device
        )

    def __call__(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        step: StepAttention,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
    ) -> torch.Tensor:
        """x: (num_tokens, hidden_size) -> the same shape. Writes the tokens' K and V first."""
        heads = self.qkv(x).view(x.shape[0], -1, self._head_dim)
        num_rotated = self._num_heads + self._num_kv_heads
        rotated = self._backend.rotary(heads[:, :num_rotated], *rotary)
        keys, values = rotated[:, self._num_heads :], heads[:, num_rotated:]
        step.write_kv(keys, values, key_cache, value_cache)
        queries = rotated[:, : self._num_heads]
        return self.output(step.paged_attention(queries, key_cache, value_cache))
