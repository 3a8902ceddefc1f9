"""The one decoder that every family runs on, described by a DecoderConfig.

Pre-norm transformer: token embedding, layers of attention and MLP, final norm, output head. Knows
no checkpoint format (engine/weights.py fills it) and no kernel (the backend does the work).
Inference only; parameters are plain tensors.
"""

from collections.abc import Iterator
from collections.abc import Sequence as ListLike

import torch

from engine.backends.base import Backend, StepAttention
from engine.batch import Batch
from engine.kv_cache import KVCache, LayerCache
from engine.layers.attention import Attention
from engine.layers.embedding import Embedding
from engine.layers.linear import Linear
from engine.layers.mlp import MLP
from engine.layers.module import Module
from engine.layers.moe import MoE
from engine.layers.norm import RMSNorm
from engine.layers.positions import PositionEncoding, Positions
from engine.models.config import DecoderConfig
from engine.models.rank import VOCABULARY_UNIT, shard_config
from engine.parallel import ALONE, TensorParallel


class DecoderLayer:
    """One layer; its input is the last layer's output and, not yet added to it, the residual."""

    __slots__ = ("_parallel", "attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(
        self,
        backend: Backend,
        config: DecoderConfig,
        layer: int,
        parallel: TensorParallel,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._parallel = parallel
        size = config.hidden_size
        self.attention_norm = RMSNorm(backend, size, config, dtype=dtype)
        self.attention = Attention(backend, config, layer, dtype=dtype)
        self.mlp_norm = RMSNorm(backend, size, config, dtype=dtype)
        self.mlp: MLP | MoE
        if config.moe is not None and config.is_sparse(layer):
            self.mlp = MoE(backend, config, config.moe, dtype=dtype)
        else:
            width = config.intermediate_size
            self.mlp = MLP(backend, size, width, dtype=dtype)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        positions: Positions,
        step: StepAttention,
        cache: LayerCache,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual: (num_tokens, hidden_size). Returns the next layer's (x, residual)."""
        if residual is None:
            normed, residual = self.attention_norm(x), x
        else:
            normed, residual = self.attention_norm.add(x, residual)
        attended = self.attention(normed, positions, step, cache)
        normed, residual = self.mlp_norm.add(self._parallel.all_reduce(attended), residual)
        return self._parallel.all_reduce(self.mlp(normed)), residual

    def parts(self) -> dict[str, Module]:
        norms: dict[str, Module] = {
            "attention_norm": self.attention_norm,
            "mlp_norm": self.mlp_norm,
        }
        return norms | self.attention.parts() | self.mlp.parts()


class Decoder:
    """A decoder-only language model, made without memory for its parameters, or one rank of it.

    `unit` is the least number of columns that tensor parallelism keeps together.
    """

    batch_invariant = False  # torch multiplies one row in another order than eight

    def __init__(
        self,
        config: DecoderConfig,
        backend: Backend,
        *,
        dtype: torch.dtype,
        device: torch.device,
        parallel: TensorParallel = ALONE,
        unit: int = 1,
    ) -> None:
        self.config = config  # of the whole model
        self.own_config = shard_config(config, parallel, unit)  # of this rank
        self.parallel = parallel
        self.unit = unit
        self.backend = backend
        self.dtype = dtype
        self.device = device
        size = config.hidden_size
        vocabulary = parallel.share(config.vocab_size, VOCABULARY_UNIT)
        self.embedding = Embedding(vocabulary, size, parallel, dtype=dtype)
        self.layers = [
            DecoderLayer(backend, self.own_config, layer, parallel, dtype=dtype)
            for layer in range(config.num_layers)
        ]
        self.norm = RMSNorm(backend, size, config, dtype=dtype)
        self.head = Linear(backend, size, len(vocabulary), dtype=dtype)
        self.positions = PositionEncoding(config, parallel, dtype=dtype, device=device)

    def forward(self, batch: Batch, kv_cache: KVCache) -> torch.Tensor:
        """Compute every token of `batch`, reading and writing its sequences' blocks in `kv_cache`.

        Returns the hidden states after the final norm: (num_tokens, hidden_size), in the order of
        the batch's tokens.
        """
        step = self.backend.step_attention(batch)
        positions = self.positions.lookup(batch)
        x = self.embedding(batch.token_ids)
        residual: torch.Tensor | None = None
        for layer, cache in zip(self.layers, kv_cache.layers, strict=True):
            x, residual = layer(x, residual, positions, step, cache)
        if residual is None:
            return self.norm(x)
        return self.norm.add(x, residual)[0]

    def compute_logits(self, hidden_rows: torch.Tensor) -> torch.Tensor:
        """Logits of rows of `forward`'s result: (n, hidden_size) -> (n, vocab_size) float32."""
        logits = self.head(hidden_rows)
        return self.parallel.all_gather(logits, self.config.vocab_size, VOCABULARY_UNIT).float()

    def logits(
        self, batch: Batch, kv_cache: KVCache, rows: ListLike[list[int]]
    ) -> Iterator[torch.Tensor]:
        """See engine/backends/base.py: ForwardPass."""
        hidden = self.forward(batch, kv_cache)
        return (self.compute_logits(hidden[piece]) for piece in rows)

    def modules(self) -> dict[str, Module]:
        """All that has parameters to fill, by name; not a tied head."""
        modules: dict[str, Module] = {"embedding": self.embedding}
        for i, layer in enumerate(self.layers):
            modules |= {f"layers.{i}.{name}": part for name, part in layer.parts().items()}
        modules["norm"] = self.norm
        return modules if self.config.tie_word_embeddings else modules | {"head": self.head}

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every plain tensor of `modules`, by name."""
        return {
            f"{name}.{parameter}": tensor
            for name, module in self.modules().items()
            for parameter, tensor in module.parameters().items()
        }
