"""A decoder whose whole forward pass is one call of the compiled kernels (decoder.h)."""

import ctypes
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as ListLike

import torch

from engine.batch import Batch
from engine.kernels import abi
from engine.kernels.panels import Panels
from engine.kv_cache import KVCache
from engine.kv_slots import Int8Slots, Slots
from engine.layers.linear import Linear
from engine.layers.mlp import MLP
from engine.layers.norm import RMSNorm
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder, DecoderLayer
from engine.quant.groupwise import StackedWeight

_DTYPES = (torch.float32, torch.bfloat16)


class CompiledDecoder:
    """Computes what `decoder` does, with the same weights and cache; see engine/models/decoder.py.

    Activations are float32 between products. A token's result does not depend on the tokens beside
    it: not on the batch, on how a prompt was cut into chunks, or on what the cache held before.
    """

    def __init__(self, decoder: Decoder, kv_cache: KVCache, library: ctypes.CDLL) -> None:
        """`reason_against` must have nothing to say."""
        self._library = library
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._kept: list[object] = []  # what the structs point to
        config = decoder.config
        layers = (abi.Layer * config.num_layers)()
        for i, layer in enumerate(decoder.layers):
            layers[i] = self._layer(layer, config.window(i))
            cache = kv_cache.layers[i]
            layers[i].keys, layers[i].values = self._cache(cache.keys), self._cache(cache.values)
        self._kept.append(layers)
        assert isinstance(decoder.embedding.weight, Panels)
        rope = config.rope
        self._model = abi.Model(
            layers=layers,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rotary_dim=0 if rope is None else rope.rotary_dim,
            logn_length=config.logn_length or 0,
            slopes=self._floats(decoder.positions.slopes),
            norm=self._floats(decoder.norm.weight),
            embedding=ctypes.pointer(decoder.embedding.weight.struct),
            eps=config.rms_norm_eps,
            rotary_magnitude=1.0 if rope is None else rope.scaling.attention_factor,
            head=self._linear(decoder.head),
            is_bfloat16=decoder.dtype == torch.bfloat16,
        )

    @property
    def batch_invariant(self) -> bool:
        return True

    @property
    def config(self) -> DecoderConfig:
        return self._decoder.config

    def logits(
        self, batch: Batch, kv_cache: KVCache, rows: ListLike[list[int]]
    ) -> Iterator[torch.Tensor]:
        """See engine/backends/base.py: ForwardPass. With one piece of ascending rows, as there is
        but for prompt logprobs, the last layer computes these alone and one call does all.
        """
        if len(rows) > 1:
            hidden = self.forward(batch, kv_cache)
            return (self.compute_logits(hidden[piece]) for piece in rows)
        wanted = rows[0] if rows else []
        logits = torch.empty(len(wanted), self.config.vocab_size)
        self._compute(batch, kv_cache, wanted, logits)
        return iter([logits] if rows else [])

    def forward(self, batch: Batch, kv_cache: KVCache) -> torch.Tensor:
        """Hidden states after the final norm of every token: (num_tokens, hidden_size) float32."""
        return self._compute(batch, kv_cache, range(len(batch.token_ids)), None)

    def _compute(
        self,
        batch: Batch,
        kv_cache: KVCache,
        wanted: ListLike[int],
        logits: torch.Tensor | None,
    ) -> torch.Tensor:
        """Hidden states of the `wanted` tokens, whose logits are put into `logits`."""
        assert kv_cache is self._kv_cache
        num_sequences = len(batch.context_lens)
        frequencies = [self._decoder.positions.frequencies(theta) for theta in batch.rope_thetas]
        pointers = (ctypes.c_void_p * num_sequences)(
            *(None if angles is None else angles.data_ptr() for angles in frequencies)
        )
        starts, lengths, outputs = map(
            _int64, (batch.query_starts, batch.context_lens, list(wanted))
        )
        step = abi.StepInput(
            num_tokens=batch.query_starts[-1],
            num_sequences=num_sequences,
            block_size=batch.block_size,
            table_width=batch.block_tables.shape[1],
            num_outputs=len(outputs),
            token_ids=batch.token_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            query_starts=_address(starts),
            context_lens=_address(lengths),
            block_tables=batch.block_tables.data_ptr(),
            outputs=_address(outputs),
            frequencies=pointers,
        )
        hidden = torch.empty(len(outputs), self.config.hidden_size)
        self._library.decoder_forward(
            ctypes.byref(self._model),
            ctypes.byref(step),
            hidden.data_ptr(),
            None if logits is None else logits.data_ptr(),
        )
        return hidden

    def compute_logits(self, hidden_rows: torch.Tensor) -> torch.Tensor:
        """Logits of rows of `forward`'s result: (n, hidden_size) -> (n, vocab_size) float32."""
        rows = hidden_rows.contiguous()
        out = torch.empty(len(rows), self.config.vocab_size)
        self._library.multiply_rows(
            ctypes.byref(self._model.head),
            self._model.is_bfloat16,
            rows.data_ptr(),
            len(rows),
            out.data_ptr(),
        )
        return out

    def _layer(self, layer: DecoderLayer, window: int | None) -> abi.Layer:
        attention, mlp = layer.attention, layer.mlp
        assert isinstance(mlp, MLP)
        return abi.Layer(
            attention_norm=self._floats(layer.attention_norm.weight),
            q_norm=self._floats(_weight_of(attention.q_norm)),
            k_norm=self._floats(_weight_of(attention.k_norm)),
            mlp_norm=self._floats(layer.mlp_norm.weight),
            qkv=self._linear(attention.qkv),
            output=self._linear(attention.output),
            gate_up=self._linear(mlp.gate_up),
            down=self._linear(mlp.down),
            window=window or 0,
        )

    def _linear(self, linear: Linear) -> abi.Linear:
        structs = [part.struct for part in _parts(linear)]
        parts = (abi.Weight * len(structs))(*structs)
        self._kept += [parts, linear.weight]
        return abi.Linear(len(structs), parts, self._floats(linear.bias))

    def _floats(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        floats = tensor.float().contiguous()
        self._kept.append(floats)
        return floats.data_ptr()

    def _cache(self, slots: Slots) -> abi.Cache:
        if isinstance(slots, Int8Slots):
            codes, scales = slots.codes, slots.scales
            is_bfloat16 = scales.dtype == torch.bfloat16
            groups = scales.shape[-1]
            return abi.Cache(
                codes.data_ptr(), scales.data_ptr(), groups, abi.INT8_CACHE, is_bfloat16
            )
        is_bfloat16 = slots.data.dtype == torch.bfloat16
        kind = abi.BFLOAT16_CACHE if is_bfloat16 else abi.FLOAT_CACHE
        return abi.Cache(slots.data.data_ptr(), None, 1, kind, is_bfloat16)


def reason_against(decoder: Decoder) -> str | None:
    """Why the kernels cannot compute this decoder; None where they can."""
    config = decoder.config
    if decoder.parallel.size > 1:
        return "it is one rank of several"
    if decoder.dtype not in _DTYPES:
        return f"{decoder.dtype} is not computed by them"
    if config.head_dim % 2:
        return "its heads are of an odd size"
    if config.num_heads // config.num_kv_heads > abi.MOST_GROUP:
        return "too many heads share keys"
    if not isinstance(decoder.embedding.weight, Panels):
        return "the embedding has groups that they do not have"
    for layer in decoder.layers:
        if not isinstance(layer.mlp, MLP):
            return "a layer is a mixture of experts"
        linears = (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down)
        if not all(map(_is_suitable, linears)):
            return "a weight has groups that they do not have"
    return None if _is_suitable(decoder.head) else "the head has groups that they do not have"


def _is_suitable(linear: Linear) -> bool:
    parts = linear.weight.parts if isinstance(linear.weight, StackedWeight) else [linear.weight]
    panels = [part for part in parts if isinstance(part, Panels)]
    if len(panels) < len(parts) or len(parts) > abi.MOST_PARTS or linear.gather is not None:
        return False
    first = panels[0]
    return all(
        part.struct.kind == first.struct.kind and _same_order(part, first) for part in panels
    )


def _same_order(a: Panels, b: Panels) -> bool:
    if a.order is None or b.order is None:
        return a.order is b.order
    return torch.equal(a.order, b.order)


def _parts(linear: Linear) -> list[Panels]:
    weight = linear.weight
    parts = weight.parts if isinstance(weight, StackedWeight) else (weight,)
    return [part for part in parts if isinstance(part, Panels)]


def _weight_of(norm: RMSNorm | None) -> torch.Tensor | None:
    return None if norm is None else norm.weight


def _int64(numbers: ListLike[int]) -> "array[int]":
    return array("q", numbers)


def _address(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]
