"""What attention knows of positions, the same for all layers of a step."""

import math
from dataclasses import dataclass

import torch

from engine.batch import Batch
from engine.layers.rotary import Rotary
from engine.models.config import DecoderConfig
from engine.parallel import TensorParallel


@dataclass(frozen=True, slots=True)
class Positions:
    """Of the tokens of one step."""

    rotary: tuple[torch.Tensor, torch.Tensor] | None  # cos, sin (num_tokens, 1, rotary_dim)
    alibi_slopes: torch.Tensor | None  # (num_heads,) float32
    query_scale: torch.Tensor | None  # (num_tokens, 1, 1) in the model's dtype


class PositionEncoding:
    """Makes the Positions of a step, by RoPE or ALiBi and with LogN scaling where there is any."""

    def __init__(
        self,
        config: DecoderConfig,
        parallel: TensorParallel,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._dtype = dtype
        self._logn_length = config.logn_length
        self._rotary = None
        self.slopes: torch.Tensor | None = None  # ALiBi's, (num_heads,) float32
        if config.rope is None:
            heads = parallel.share(config.num_heads)
            self.slopes = alibi_slopes(config.num_heads)[heads.start : heads.stop].to(device)
        else:
            self._rotary = Rotary(config.rope, dtype=dtype, device=device)

    def lookup(self, batch: Batch) -> Positions:
        """The positions of the tokens of `batch`."""
        rotary = None if self._rotary is None else self._rotary.lookup(batch)
        return Positions(rotary, self.slopes, self._query_scale(batch.positions))

    def frequencies(self, theta: float) -> torch.Tensor | None:
        """Angles per position for the base `theta`, (rotary_dim / 2,) float32; None with ALiBi."""
        return None if self._rotary is None else self._rotary.frequencies(theta)

    def _query_scale(self, positions: torch.Tensor) -> torch.Tensor | None:
        """LogN: log of the 1-based position, to the base of the length trained on, at least 1.

        Source: logn_tensor in modeling_qwen.py of Qwen-7B.
        """
        if self._logn_length is None:
            return None
        scale = (positions + 1).float().log() / math.log(self._logn_length)
        return scale.clamp(min=1.0).to(self._dtype)[:, None, None]


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Slope of each head (arXiv:2108.12409, and its code for other numbers than powers of two):
    (num_heads,) float32.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    # the others are every second one of twice as many heads, appended and not sorted in
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32)
