"""Grouped-query attention over the paged KV cache, with rotary positions or ALiBi."""

import torch

from engine.backends.base import Backend, StepAttention
from engine.kv_cache import LayerCache
from engine.layers.linear import Linear
from engine.layers.module import Module
from engine.layers.norm import RMSNorm
from engine.layers.positions import Positions
from engine.models.config import DecoderConfig


class Attention:
    """qkv holds the rows of q, k and v in this order, whole heads each."""

    __slots__ = (
        "_backend",
        "_head_dim",
        "_num_heads",
        "_num_kv_heads",
        "_window",
        "k_norm",
        "output",
        "q_norm",
        "qkv",
    )

    def __init__(
        self,
        backend: Backend,
        config: DecoderConfig,
        layer: int,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._backend = backend
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._window = config.window(layer)
        width = config.num_heads * config.head_dim
        qkv_width = width + 2 * config.num_kv_heads * config.head_dim
        self.qkv = Linear(backend, config.hidden_size, qkv_width, bias=config.qkv_bias, dtype=dtype)
        self.output = Linear(
            backend, width, config.hidden_size, bias=config.output_bias, dtype=dtype
        )
        self.q_norm, self.k_norm = (
            RMSNorm(backend, config.head_dim, config, dtype=dtype) if config.qk_norm else None
            for _ in range(2)
        )

    def __call__(
        self,
        x: torch.Tensor,
        positions: Positions,
        step: StepAttention,
        cache: LayerCache,
    ) -> torch.Tensor:
        """x: (num_tokens, hidden_size) -> the same shape. Writes the tokens' K and V first."""
        heads = self.qkv(x).view(x.shape[0], -1, self._head_dim)
        num_scored = self._num_heads + self._num_kv_heads
        scored, values = heads[:, :num_scored], heads[:, num_scored:]
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = scored[:, : self._num_heads], scored[:, self._num_heads :]
            scored = torch.cat((self.q_norm(queries), self.k_norm(keys)), dim=1)
        if positions.rotary is not None:
            scored = self._backend.rotary(scored, *positions.rotary)
        queries, keys = scored[:, : self._num_heads], scored[:, self._num_heads :]
        step.write_kv(keys, values, cache)
        if positions.query_scale is not None:
            queries = queries * positions.query_scale
        return self.output(
            step.paged_attention(queries, cache, self._window, positions.alibi_slopes)
        )

    def parts(self) -> dict[str, Module]:
        parts: dict[str, Module] = {"qkv": self.qkv, "output": self.output}
        if self.q_norm is not None and self.k_norm is not None:
            parts |= {"q_norm": self.q_norm, "k_norm": self.k_norm}
        return parts
