"""Quantizes plain weights while they are loaded: --quantization int8 and int4.

int8: one scale for each row, symmetric. int4: a scale and a zero point, both float16, for each 32
columns, fitted to the smallest squared error of the weights from a few first guesses.
"""

from typing import Literal

import torch

from engine.errors import ConfigError
from engine.quant.groupwise import GroupwiseWeight, pack_nibbles

Target = Literal["int8", "int4"]

INT4_GROUP_SIZE = 32
_RANGES = (1.0, 0.9, 0.8)  # shares of a group's own range, as first guesses
_FITS = 3
_SMALLEST_SCALE = 6e-8  # that float16 can hold
_PIECE_ELEMENTS = 2**17  # quantized at once, to bound the memory that it takes


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
    scales = floats.abs().amax(dim=1, keepdim=True) / 127
    scales = scales.clamp(min=_SMALLEST_SCALE).half().float()
    codes = (floats / scales).round().clamp(-127, 127) + 128
    return codes.to(torch.uint8), scales.half(), torch.full_like(scales, 128, dtype=torch.uint8)


def _int4(weight: torch.Tensor) -> _Quantized:
    groups = weight.float().view(len(weight), -1, INT4_GROUP_SIZE)
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    # Weights that are all but equal would need a zero point that float16 cannot hold.
    smallest = (torch.maximum(-low, high) * 1e-3).clamp(min=_SMALLEST_SCALE)
    best_error = torch.full_like(low, float("inf"))
    best_codes = torch.zeros_like(groups)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for share in _RANGES:
        scale = torch.maximum((high - low) * (share / 15), smallest)
        zero = 7.5 - (low + high) / (2 * scale)
        for _ in range(_FITS):
            scale, zero = _fit(groups, _codes(groups, scale, zero), scale, smallest)
        scale, zero = scale.half().float(), zero.half().float()
        codes = _codes(groups, scale, zero)
        error = ((codes - zero) * scale - groups).square().sum(dim=-1, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best_codes = torch.where(is_better, codes, best_codes)
        best_scale = torch.where(is_better, scale, best_scale)
        best_zero = torch.where(is_better, zero, best_zero)
    packed = pack_nibbles(best_codes.to(torch.uint8).flatten(1))
    return packed, best_scale.squeeze(-1).half(), best_zero.squeeze(-1).half()


def _codes(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return (groups / scale + zero).round().clamp(0, 15)


def _fit(
    groups: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, smallest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero point with the smallest squared error for these codes: the regression
    line of the weights over the codes. The scale stays where that line is too flat.
    """
    centred = codes - codes.mean(dim=-1, keepdim=True)
    mean = groups.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True)
    slope = (centred * (groups - mean)).sum(dim=-1, keepdim=True) / variance.clamp(min=1e-12)
    fitted = torch.where(slope > smallest, slope, scale)
    return fitted, codes.mean(dim=-1, keepdim=True) - mean / fitted
