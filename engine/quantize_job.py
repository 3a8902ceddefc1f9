"""What `qwen-serve quantize` and engine/quantize_process.py say to each other. No torch.

One line of JSON each: the job on standard input, one LayerQuantized after another on standard
output.
"""

from typing import Literal

import msgspec


class QuantizeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to quantize."""

    bits: Literal[4, 8] = 4
    group_size: int = 128  # columns; -1 = one group for each row
    act_order: bool = False
    symmetric: bool = True
    damp: float = 0.01
    device: Literal["auto", "cpu", "cuda"] = "auto"


class QuantizeJob(QuantizeOptions, frozen=True, kw_only=True):
    """And what."""

    model: str  # a folder or a .gguf file
    output: str  # an empty folder
    token_ids: list[list[int]]  # the calibration's samples


class LayerQuantized(msgspec.Struct, frozen=True, kw_only=True):
    """A layer is done."""

    layer: int  # from 1
    num_layers: int
    seconds: float
    # of each matrix: the mean squared error of its outputs over their mean square
    errors: dict[str, float]
