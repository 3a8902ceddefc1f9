"""The one decoder that every family runs on, described by a DecoderConfig.

Pre-norm transformer: token embedding, layers of attention and MLP, final norm, output head. Knows
no checkpoint format (engine/weights.py fills it) and no kernel (the backend does the work).
Inference only; parameters are plain tensors.
"""

import torch

from engine.backends.base import Backend, StepAttention
from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.layers.attention import Attention
from engine.layers.linear import Linear
from engine.layers.mlp import MLP
from engine.layers.moe import MoE
from engine.layers.norm import RMSNorm
from engine.layers.positions import PositionEncoding, Positions
from engine.models.config import DecoderConfig


class DecoderLayer:
    """One layer; its input is the last layer's output and, not yet added to it, the residual."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(
        self,
        backend: Backend,
        config: DecoderConfig,
        layer: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        size = config.hidden_size
        self.attention_norm = RMSNorm(backend, size, config, dtype=dtype, device=device)
        self.attention = Attention(backend, config, layer, dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(backend, size, config, dtype=dtype, device=device)
        self.mlp: MLP | MoE
        if config.moe is not None and config.is_sparse(layer):
            self.mlp = MoE(backend, config, config.moe, dtype=dtype, device=device)
        else:
            width = config.intermediate_size
            self.mlp = MLP(backend, size, width, dtype=dtype, device=device)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        positions: Positions,
        step: StepAttention,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual: (num_tokens, hidden_size). Returns the next layer's (x, residual)."""
        if residual is None:
            normed, residual = self.attention_norm(x), x
        else:
            normed, residual = self.attention_norm.add(x, residual)
        attended = self.attention(normed, positions, step, key_cache, value_cache)
        normed, residual = self.mlp_norm.add(attended, residual)
        return self.mlp(normed), residual

    def parts(self) -> dict[str, Linear | RMSNorm]:
        norms = {"attention_norm": self.attention_norm, "mlp_norm": self.mlp_norm}
        return norms | self.attention.parts() | self.mlp.parts()


class Decoder:
    """A decoder-only language model. Its parameters are not filled by the constructor."""

    def __init__(
        self, config: DecoderConfig, backend: Backend, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = config
        self.backend = backend
        self.dtype = dtype
        self.device = device
        size, vocab_size = config.hidden_size, config.vocab_size
        self.layers = [
            DecoderLayer(backend, config, layer, dtype=dtype, device=device)
            for layer in range(config.num_layers)
        ]
        self.norm = RMSNorm(backend, size, config, dtype=dtype, device=device)
        self.head = Linear(backend, size, vocab_size, dtype=dtype, device=device)
        self.embedding = (
            self.head.weight if config.tie_word_embeddings else torch.empty_like(self.head.weight)
        )  # (vocab_size, hidden_size)
        self.positions = PositionEncoding(config, dtype=dtype, device=device)

    def forward(self, batch: Batch, kv_cache: KVCache) -> torch.Tensor:
        """Compute every token of `batch`, reading and writing its sequences' blocks in `kv_cache`.

        Returns the hidden states after the final norm: (num_tokens, hidden_size), in the order of
        the batch's tokens.
        """
        step = self.backend.step_attention(batch)
        positions = self.positions.lookup(batch)
        x = self.embedding.index_select(0, batch.token_ids)
        residual: torch.Tensor | None = None
        for layer, keys, values in zip(self.layers, kv_cache.keys, kv_cache.values, strict=True):
            x, residual = layer(x, residual, positions, step, keys, values)
        if residual is None:
            return self.norm(x)
        return self.norm.add(x, residual)[0]

    def compute_logits(self, hidden_rows: torch.Tensor) -> torch.Tensor:
        """Logits of rows of `forward`'s result: (n, hidden_size) -> (n, vocab_size) float32."""
        return self.head(hidden_rows).float()

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every tensor to fill, by name; a tied head is only there as the embedding."""
        tensors = {"embedding.weight": self.embedding, "norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            tensors["head.weight"] = self.head.weight
        for i, layer in enumerate(self.layers):
            for part_name, part in layer.parts().items():
                for name, tensor in part.parameters().items():
                    tensors[f"layers.{i}.{part_name}.{name}"] = tensor
        return tensors
