"""Rotary position embedding (arXiv:2104.09864): cosines and sines, computed in float32."""

import math
from functools import lru_cache

import torch

from engine.batch import Batch
from engine.models.rope import Rope, RopeScaling

_CACHED_THETAS = 256


class Rotary:
    """The angles of every position, computed for the tokens of a step and used by all layers."""

    def __init__(self, rope: Rope, *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._magnitude = rope.scaling.attention_factor
        self.frequencies = lru_cache(_CACHED_THETAS)(
            lambda theta: rotary_frequencies(rope, theta).to(device)
        )

    def lookup(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for the tokens of `batch`, each (num_tokens, 1, rotary_dim).

        Rounded to the model's dtype as transformers does, but never computed in it. Both repeat
        their half width; the first half of sin is negated, as rotate-half wants it.
        """
        angles = batch.positions.float().unsqueeze(1) * self._batch_frequencies(batch)
        cos = (angles.cos() * self._magnitude).to(self._dtype).unsqueeze(1)
        sin = (angles.sin() * self._magnitude).to(self._dtype).unsqueeze(1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def _batch_frequencies(self, batch: Batch) -> torch.Tensor:
        """(num_tokens, rotary_dim / 2), or (1, ...) where all sequences have the same ones."""
        thetas = dict.fromkeys(batch.rope_thetas)
        rows = torch.stack([self.frequencies(theta) for theta in thetas])
        if len(thetas) == 1:
            return rows
        index = {theta: row for row, theta in enumerate(thetas)}
        lengths = [b - a for a, b in zip(batch.query_starts, batch.query_starts[1:], strict=False)]
        of_sequence = torch.tensor([index[theta] for theta in batch.rope_thetas])
        return rows[of_sequence.repeat_interleave(torch.tensor(lengths)).to(rows.device)]


def rotary_frequencies(rope: Rope, theta: float) -> torch.Tensor:
    """Angle per position of each pair of elements, for the base `theta`: (rotary_dim / 2,)
    float32.
    """
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies: torch.Tensor = 1.0 / theta**exponents
    scaling = rope.scaling
    match scaling.kind:
        case "linear":
            return frequencies / scaling.factor
        case "factors":
            return frequencies / torch.tensor(scaling.factors, dtype=torch.float32)
        case "llama3":
            return _llama3(frequencies, scaling)
        case "yarn":
            return _yarn(frequencies, rope, theta)
        case "default" | "dynamic" | "qwen":  # the last two are in theta
            return frequencies


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Divide long wavelengths by the factor, keep short ones, blend between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings / wavelengths  # over the original context
    smooth = (turns - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(turns < low, frequencies / scaling.factor, blended)
    return torch.where(turns > high, frequencies, scaled)


def _yarn(frequencies: torch.Tensor, rope: Rope, theta: float) -> torch.Tensor:
    """Keep the frequencies that turn often over the original context, divide the others by the
    factor, blend between (arXiv:2309.00071, section 3.2).
    """
    scaling, dim = rope.scaling, rope.rotary_dim
    original = scaling.original_max_position_embeddings

    def index_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)
