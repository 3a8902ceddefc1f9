"""Quantizes plain weights while they are loaded: --quantization int8 and int4.

int8: one scale for each row, symmetric. int4: a scale and a zero point for each 32 columns, each
group's range chosen among a few for the smallest squared error of its weights.
"""

from typing import Literal

import torch

from engine.errors import ConfigError
from engine.quant.groupwise import GroupwiseWeight, pack_nibbles

Target = Literal["int8", "int4"]

INT4_GROUP_SIZE = 32
_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8)  # shares of a group's own range that are tried
_PIECE_ELEMENTS = 2**22  # quantized at once, to bound the memory that it takes


def quantize(weight: torch.Tensor, target: Target) -> GroupwiseWeight:
    """weight (out, in) of floats. Raises ConfigError where the groups do not divide the columns."""
    columns = weight.shape[1]
    if target == "int4" and columns % INT4_GROUP_SIZE:
        raise ConfigError(
            f"--quantization int4 needs layers whose {columns} inputs are a multiple of "
            f"{INT4_GROUP_SIZE}."
        )
    one = _int8 if target == "int8" else _int4
    num_rows = max(1, _PIECE_ELEMENTS // columns)
    pieces = [one(rows) for rows in torch.split(weight, num_rows)]
    codes, scales, zeros = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
    if target == "int8":
        return GroupwiseWeight(codes, scales, zeros, bits=8, group_size=columns)
    return GroupwiseWeight(codes, scales, zeros, bits=4, group_size=INT4_GROUP_SIZE)


_Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _int8(weight: torch.Tensor) -> _Quantized:
    floats = weight.float()
    scales = _not_zero(floats.abs().amax(dim=1, keepdim=True) / 127).to(torch.float16).float()
    codes = (floats / scales).round().clamp(-127, 127) + 128
    return codes.to(torch.uint8), scales.half(), torch.full_like(scales, 128, dtype=torch.uint8)


def _int4(weight: torch.Tensor) -> _Quantized:
    groups = weight.float().view(len(weight), -1, INT4_GROUP_SIZE)
    low = groups.amin(dim=-1, keepdim=True).clamp(max=0)  # 0 has a code: it is exact
    high = groups.amax(dim=-1, keepdim=True).clamp(min=0)
    best_error = torch.full_like(low, float("inf"))
    codes = torch.zeros_like(groups)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for share in _RANGES:
        scale = _not_zero((high - low) * (share / 15)).to(torch.float16).float()
        zero = (-low * share / scale).round().clamp(0, 15)
        code = ((groups / scale).round() + zero).clamp(0, 15)
        error = ((code - zero) * scale - groups).square().sum(dim=-1, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        codes = torch.where(is_better, code, codes)
        scales = torch.where(is_better, scale, scales)
        zeros = torch.where(is_better, zero, zeros)
    return (
        pack_nibbles(codes.to(torch.uint8).flatten(1)),
        scales.squeeze(-1).half(),
        zeros.squeeze(-1).to(torch.uint8),
    )


def _not_zero(scales: torch.Tensor) -> torch.Tensor:
    """float16 cannot hold less than 6e-8; a row of zeros needs some scale."""
    return scales.clamp(min=6e-8)
