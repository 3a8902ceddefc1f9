"""The kernel seam: what the decoder asks of a device. One backend is chosen when the engine starts.

`engine/backends/reference.py` is the implementation in plain torch, and the oracle of all others.
Tensors are on the backend's device, activations in the model's dtype unless said otherwise.
"""

from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from typing import TYPE_CHECKING, Protocol

import torch

from engine.batch import Batch
from engine.kv_cache import KVCache, LayerCache
from engine.models.config import DecoderConfig
from engine.quant.groupwise import GroupwiseWeight, QuantizedTable, QuantizedWeight

if TYPE_CHECKING:
    from engine.models.decoder import Decoder


class StepAttention(Protocol):
    """Attention of one step: prepared once from its batch, then used by every layer in turn."""

    def write_kv(self, keys: torch.Tensor, values: torch.Tensor, cache: LayerCache) -> None:
        """Put K and V of the step's tokens, (num_tokens, num_kv_heads, head_dim), in place."""
        ...

    def paged_attention(
        self,
        queries: torch.Tensor,
        cache: LayerCache,
        window: int | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Causal attention of each token over its own sequence, read through the block tables.

        queries: (num_tokens, num_heads, head_dim), not yet scaled. `cache` is the layer's, and
        holds every token of the step already, because a sequence may share blocks that another
        chunk of the same step writes: what attends is what was stored. Softmax in
        float32. A token sees the last `window` tokens up to itself, None = all. ALiBi adds to the
        scaled scores slope * (key position - query position), with `alibi_slopes` (num_heads,)
        float32. Slots outside a sequence never influence it, whatever they hold (NaN included).
        Returns (num_tokens, num_heads * head_dim).
        """
        ...


class ForwardPass(Protocol):
    """A loaded model as the engine computes it: engine/models/decoder.py, or a backend's own."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a token's result is the same, bit for bit, whatever is computed beside it."""
        ...

    def forward(self, batch: Batch, kv_cache: KVCache) -> torch.Tensor:
        """Hidden states of the batch's tokens: (num_tokens, hidden_size)."""
        ...

    def compute_logits(self, hidden_rows: torch.Tensor) -> torch.Tensor:
        """Logits of rows of `forward`'s result: (n, hidden_size) -> (n, vocab_size) float32."""
        ...

    def logits(
        self, batch: Batch, kv_cache: KVCache, rows: ListLike[list[int]]
    ) -> Iterator[torch.Tensor]:
        """Compute the batch now, then give the logits of each piece of `rows` of its tokens:
        (length of the piece, vocab_size) float32.
        """
        ...


class Backend(Protocol):
    """Kernels for one kind of device."""

    @property
    def name(self) -> str: ...

    def step_attention(self, batch: Batch) -> StepAttention:
        """Prepare a step: everything about its batch that does not depend on the layer."""
        ...

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """x (n, in) @ weight (out, in) transposed + bias (out,) -> (n, out)."""
        ...

    def prepare(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedWeight:
        """Bring a quantized weight, on the device already, into the form that `linear` likes
        best; `dtype` is that of the activations.
        """
        ...

    @property
    def has_groupwise_kernels(self) -> bool:
        """Whether products with any groupwise weight are fast; then GGUF weights stay packed."""
        ...

    def prepare_table(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedTable:
        """`prepare` for an embedding, whose rows are looked up and which may be the head too."""
        ...

    def prepare_plain(self, weight: torch.Tensor) -> torch.Tensor | QuantizedTable:
        """The same for a weight or an embedding that is not quantized."""
        ...

    def compile(self, decoder: "Decoder", kv_cache: KVCache) -> "ForwardPass":
        """The fastest way to compute a loaded decoder over `kv_cache`; perhaps itself."""
        ...

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, scales_in_float32: bool = False
    ) -> torch.Tensor:
        """RMSNorm over the last axis, in float32, cast back before the weight is applied, or with
        `scales_in_float32` after it.
        """
        ...

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        scales_in_float32: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rms_norm(x + residual), x + residual). May write into both arguments."""
        ...

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate the first rotary_dim elements of each head, rotate-half layout.

        x: (num_tokens, n, head_dim); cos, sin: (num_tokens, 1, rotary_dim) as
        engine/layers/rotary.py gives them. Returns a tensor of x's shape.
        """
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half of the last axis: (n, 2 * m) -> (n, m)."""
        ...
