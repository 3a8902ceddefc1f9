"""The backend in plain torch, for any device: exact and simple before fast.

Chunks of one token (decodes) are attended to together, padded to the longest of their group; longer
chunks one by one. K and V are gathered slot by slot, so that padding repeats a sequence's own last
token and never reads memory that nobody wrote.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from engine.backends.base import ForwardPass
from engine.batch import Batch
from engine.kv_cache import KVCache, LayerCache
from engine.quant.groupwise import GroupwiseWeight, QuantizedTable, QuantizedWeight

if TYPE_CHECKING:
    from engine.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Chunks of one token with contexts of similar length."""

    rows: torch.Tensor  # (n,) indices on the token axis
    slots: torch.Tensor  # (n * length,) slot of each context token, row by row
    distances: torch.Tensor  # (n, length) query position - key position; negative = padding
    is_padded: bool

    def mask(self, window: int | None, slopes: torch.Tensor | None) -> torch.Tensor | None:
        """Broadcasts to (n, num_kv_heads, heads of each, length); None = all are visible."""
        length = self.distances.shape[1]
        if slopes is None and not self.is_padded and (window is None or window >= length):
            return None
        visible = _visible(self.distances, window)[:, None, None, :]
        if slopes is None:
            return visible
        return _alibi(slopes[..., None], self.distances[:, None, None, :], visible)

    def attend(
        self, queries: torch.Tensor, cache: LayerCache, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """queries (num_tokens, heads, d) -> (n, heads, d)."""
        keys, values = cache.keys.read(self.slots), cache.values.read(self.slots)
        n, (num_kv_heads, head_dim) = self.rows.shape[0], keys.shape[1:]
        # The query heads that share a KV head stand where a sequence's query tokens would.
        q = queries[self.rows].view(n, num_kv_heads, -1, head_dim)
        k = keys.view(n, -1, num_kv_heads, head_dim).transpose(1, 2)
        v = values.view(n, -1, num_kv_heads, head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.reshape(n, -1, head_dim)


@dataclass(frozen=True, slots=True)
class _PrefillChunk:
    """One chunk of several tokens."""

    start: int  # on the token axis
    end: int
    slots: torch.Tensor  # (context_len,)
    positions: torch.Tensor  # (num_tokens,)

    def distances(self) -> torch.Tensor:
        """Query position - key position: (num_tokens, context_len)."""
        keys = torch.arange(self.slots.shape[0], device=self.slots.device)
        return self.positions.unsqueeze(1) - keys

    def mask(self, window: int | None) -> torch.Tensor | None:
        """(num_tokens, context_len) bool, True = attend; None = causal over the whole context."""
        context_len = self.slots.shape[0]
        if self.end - self.start == context_len and (window is None or window >= context_len):
            return None
        return _visible(self.distances(), window)

    def attend(
        self, queries: torch.Tensor, cache: LayerCache, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """queries (num_tokens, heads, d) -> (n, heads, d)."""
        q, k, v = self._gather(queries, cache)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def attend_alibi(
        self,
        queries: torch.Tensor,
        cache: LayerCache,
        window: int | None,
        slopes: torch.Tensor,
    ) -> torch.Tensor:
        """The same with ALiBi, head by head: the bias of all heads at once could be gigabytes."""
        q, k, v = self._gather(queries, cache)
        distances = self.distances()
        visible = _visible(distances, window)
        num_heads, share = q.shape[1], q.shape[1] // k.shape[1]
        heads = [
            F.scaled_dot_product_attention(
                q[:, i], k[:, i // share], v[:, i // share], _alibi(slopes[i], distances, visible)
            )
            for i in range(num_heads)
        ]
        return torch.cat(heads).transpose(0, 1)

    def _gather(
        self, queries: torch.Tensor, cache: LayerCache
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = queries[self.start : self.end].transpose(0, 1).unsqueeze(0)
        k = cache.keys.read(self.slots).transpose(0, 1).unsqueeze(0)
        v = cache.values.read(self.slots).transpose(0, 1).unsqueeze(0)
        return q, k, v


class ReferenceStepAttention:
    """See engine/backends/base.py: StepAttention."""

    def __init__(self, batch: Batch) -> None:
        self._slot_mapping = batch.slot_mapping
        decodes: dict[int, list[int]] = defaultdict(list)
        self._prefills: list[_PrefillChunk] = []
        for i, context_len in enumerate(batch.context_lens):
            start, end = batch.query_starts[i], batch.query_starts[i + 1]
            if end - start == 1:
                # Grouped by power of two: padding at most doubles what is gathered.
                decodes[(context_len - 1).bit_length()].append(i)
            else:
                self._prefills.append(_prefill_chunk(batch, i, start, end))
        self._groups = [_decode_group(batch, sequences) for sequences in decodes.values()]
        # the same for all layers with the same window
        self._decode_masks: dict[int | None, list[torch.Tensor | None]] = {}
        self._prefill_masks: dict[int | None, list[torch.Tensor | None]] = {}

    def write_kv(self, keys: torch.Tensor, values: torch.Tensor, cache: LayerCache) -> None:
        cache.keys.write(self._slot_mapping, keys)
        cache.values.write(self._slot_mapping, values)

    def paged_attention(
        self,
        queries: torch.Tensor,
        cache: LayerCache,
        window: int | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out = torch.empty_like(queries, memory_format=torch.contiguous_format)
        if window not in self._decode_masks:
            slopes = None if alibi_slopes is None else alibi_slopes.view(cache.num_kv_heads, -1)
            self._decode_masks[window] = [group.mask(window, slopes) for group in self._groups]
        for group, mask in zip(self._groups, self._decode_masks[window], strict=True):
            out[group.rows] = group.attend(queries, cache, mask)
        if alibi_slopes is not None:
            for chunk in self._prefills:
                out[chunk.start : chunk.end] = chunk.attend_alibi(
                    queries, cache, window, alibi_slopes
                )
            return out.flatten(1)
        if window not in self._prefill_masks:
            self._prefill_masks[window] = [chunk.mask(window) for chunk in self._prefills]
        for chunk, mask in zip(self._prefills, self._prefill_masks[window], strict=True):
            out[chunk.start : chunk.end] = chunk.attend(queries, cache, mask)
        return out.flatten(1)


def _visible(distances: torch.Tensor, window: int | None) -> torch.Tensor:
    visible = distances >= 0
    return visible if window is None else visible & (distances < window)


def _alibi(slopes: torch.Tensor, distances: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """What is added to the scores, in float32; -inf where a key is not visible."""
    return (-slopes * distances).masked_fill(~visible, float("-inf"))


def _decode_group(batch: Batch, sequences: list[int]) -> _DecodeGroup:
    device = batch.block_tables.device
    lens = [batch.context_lens[i] for i in sequences]
    rows = torch.tensor([batch.query_starts[i] for i in sequences], device=device)
    last = torch.tensor(lens, device=device).unsqueeze(1) - 1  # (n, 1)
    positions = torch.arange(max(lens), device=device).unsqueeze(0)  # (1, length)
    tables = batch.block_tables[torch.tensor(sequences, device=device)]
    slots = _slots(tables, positions.minimum(last), batch.block_size)
    return _DecodeGroup(rows, slots.flatten(), last - positions, min(lens) < max(lens))


def _prefill_chunk(batch: Batch, sequence: int, start: int, end: int) -> _PrefillChunk:
    keys = torch.arange(batch.context_lens[sequence], device=batch.block_tables.device)
    table = batch.block_tables[sequence : sequence + 1]
    slots = _slots(table, keys.unsqueeze(0), batch.block_size).flatten()
    return _PrefillChunk(start, end, slots, batch.positions[start:end])


def _slots(tables: torch.Tensor, positions: torch.Tensor, block_size: int) -> torch.Tensor:
    """Slots of `positions` (n, length) in the sequences with block tables `tables` (n, width)."""
    blocks = tables.gather(1, positions // block_size)
    return blocks * block_size + positions % block_size


class ReferenceBackend:
    """See engine/backends/base.py: Backend."""

    name = "torch"
    has_groupwise_kernels = False

    def step_attention(self, batch: Batch) -> ReferenceStepAttention:
        return ReferenceStepAttention(batch)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if isinstance(weight, torch.Tensor):
            return F.linear(x, weight, bias)
        product = weight.multiply(x)
        return product if bias is None else product + bias

    def prepare(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedWeight:
        return weight

    def prepare_table(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedTable:
        return weight

    def prepare_plain(self, weight: torch.Tensor) -> torch.Tensor | QuantizedTable:
        return weight

    def compile(self, decoder: "Decoder", kv_cache: KVCache) -> ForwardPass:
        return decoder

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, scales_in_float32: bool = False
    ) -> torch.Tensor:
        floats = x.float()
        scale = torch.rsqrt(floats.square().mean(-1, keepdim=True) + eps)
        if scales_in_float32:
            return (weight * (floats * scale)).to(x.dtype)
        return weight * (floats * scale).to(x.dtype)

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        scales_in_float32: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return self.rms_norm(total, weight, eps, scales_in_float32), total

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rotary_dim = cos.shape[-1]
        if rotary_dim < x.shape[-1]:
            rotated = self.rotary(x[..., :rotary_dim], cos, sin)
            return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)
        first, second = x.chunk(2, dim=-1)
        # sin carries the minus sign of rotate-half's first part
        return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
