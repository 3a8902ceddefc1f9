"""What the matrices of a decoder are multiplied with: sample texts run through it layer by layer.

Holds the hidden states of all samples between two layers, and of one layer's insides only sums.
Knows nothing of quantization; engine/quantize.py changes the weights between its calls.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from engine.backends.reference import ReferenceBackend
from engine.batch import Batch, StepInput
from engine.kv_cache import KVCache
from engine.layers.linear import Linear
from engine.models.decoder import Decoder, DecoderLayer
from engine.quant.groupwise import QuantizedWeight


class _Reached(Exception):
    """The watched weight's input is known: what comes after it in the layer is not needed."""


class RecordingBackend(ReferenceBackend):
    """The reference; while it watches a weight, it sums x^T x of its inputs and stops there."""

    def __init__(self) -> None:
        self._watched: torch.Tensor | None = None
        self._sum = torch.empty(0)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if weight is self._watched:
            self._sum.addmm_(x.T, x)
            raise _Reached
        return super().linear(x, weight, bias)

    @contextmanager
    def watching(self, weight: torch.Tensor) -> Iterator[torch.Tensor]:
        """Within this, products with `weight` (out, in) raise; yields the sum, (in, in)."""
        columns = weight.shape[1]
        self._watched = weight
        self._sum = torch.zeros(columns, columns, dtype=weight.dtype, device=weight.device)
        try:
            yield self._sum
        finally:
            self._watched = None


class Calibration:
    """The samples on their way through a decoder whose embedding is filled."""

    def __init__(
        self, decoder: Decoder, backend: RecordingBackend, samples: Sequence[Sequence[int]]
    ) -> None:
        """`samples` are token ids, none of them empty; `backend` is the decoder's."""
        self._decoder = decoder
        self._backend = backend
        self._batches = [_batch(decoder, sample) for sample in samples]
        self._hidden = [decoder.embedding(batch.token_ids) for batch in self._batches]

    @torch.inference_mode()
    def input_moments(self, layer: DecoderLayer, linear: Linear) -> torch.Tensor:
        """Mean x x^T of the inputs of one of the layer's matrices, over all tokens: (in, in)."""
        assert isinstance(linear.weight, torch.Tensor)
        with self._backend.watching(linear.weight) as moments:
            for i in range(len(self._batches)):
                try:
                    self._run(layer, i)
                except _Reached:
                    continue
        return moments / sum(len(hidden) for hidden in self._hidden)

    @torch.inference_mode()
    def advance(self, layer: DecoderLayer) -> None:
        """Take all samples through `layer`, to the input of the next."""
        for i in range(len(self._batches)):
            self._hidden[i] = self._run(layer, i)

    def _run(self, layer: DecoderLayer, sample: int) -> torch.Tensor:
        batch, decoder = self._batches[sample], self._decoder
        cache = KVCache.allocate(
            replace(decoder.config, num_layers=1),
            num_blocks=1,
            block_size=batch.block_size,
            dtype=decoder.dtype,
            device=decoder.device,
        )
        step = self._backend.step_attention(batch)
        positions = decoder.positions.lookup(batch)
        # a copy: the layer may write into its input
        out, residual = layer(self._hidden[sample].clone(), None, positions, step, cache.layers[0])
        return out + residual


def _batch(decoder: Decoder, token_ids: Sequence[int]) -> Batch:
    """One sequence, computed whole, in one block of its own length."""
    length = len(token_ids)
    step = StepInput(
        token_ids=list(token_ids),
        positions=list(range(length)),
        slots=list(range(length)),
        query_starts=[0, length],
        context_lens=[length],
        block_tables=[[0]],
        rope_thetas=[decoder.config.rope_theta(length)],
        logits_rows=[],
    )
    return Batch.of(step, length, decoder.device)
