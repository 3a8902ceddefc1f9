"""Rotary position embedding (arXiv:2104.09864): cosines and sines, in float32."""

import math

import torch

from engine.models.config import DecoderConfig, RopeScaling


class Rotary:
    """The angles of every position, computed for the tokens of a step and used by all layers."""

    def __init__(self, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._frequencies = rotary_frequencies(config).to(device)

    def lookup(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for `positions` (num_tokens,), each (num_tokens, 1, rotary_dim).

        Rounded to the model's dtype as transformers does, but never computed in it. Both repeat
        their half width; the first half of sin is negated, as rotate-half wants it.
        """
        angles = positions.float().unsqueeze(1) * self._frequencies
        cos = angles.cos().to(self._dtype).unsqueeze(1)
        sin = angles.sin().to(self._dtype).unsqueeze(1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotary_frequencies(config: DecoderConfig) -> torch.Tensor:
    """Angle per position of each pair of elements: (rotary_dim / 2,) float32."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    frequencies: torch.Tensor = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.factors, dtype=torch.float32)
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
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
