"""GPTQ (arXiv:2210.17323): a weight rounded column by column, each column's error made good in
those that are still to come.

Knows one matrix and the second moments of its inputs; engine/calibration.py collects these from a
model, engine/quant/gptq_tensors.py brings the result into the layout of checkpoints.
"""

from dataclasses import dataclass

import torch

from engine.errors import ConfigError
from engine.quant.groupwise import Bits, GroupwiseWeight, pack_nibbles

_BLOCK = (
    128  # columns after which the rest of the matrix is brought up to date (section 3.3, step 2)
)
_SMALLEST_SCALE = 6e-8  # that float16 can hold
_DAMPINGS = (1, 10, 100)  # times the asked one, until the Hessian can be inverted


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """How weights are quantized."""

    bits: Bits = 4
    group_size: int | None = 128  # columns that share a scale; None = one group for each row
    act_order: bool = False  # columns whose inputs are largest are rounded first
    symmetric: bool = True  # every zero point is the middle code
    damp: float = 0.01  # of the mean of the Hessian's diagonal, added to all of it


def quantize_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, options: GptqOptions
) -> GroupwiseWeight:
    """Quantize weight (out, in) for inputs whose mean x x^T is `hessian` (in, in).

    Computed in the Hessian's dtype. The scales are float16, and rounding knows it. Columns must be
    a multiple of the group size. Raises ConfigError where no damping makes the Hessian invertible.
    """
    columns = weight.shape[1]
    group_size = options.group_size or columns
    order = None
    if options.act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        weight, hessian = weight[:, order], hessian[order][:, order]
    factor = _inverse_factor(hessian, options.damp)
    codes, scales, zeros = _round(weight.to(factor.dtype), factor, group_size, options)
    if order is not None and group_size == columns:  # all are one group, in any order
        codes, order = torch.empty_like(codes).index_copy_(1, order, codes), None
    if options.bits == 4:
        codes = pack_nibbles(codes)
    return GroupwiseWeight(codes, scales, zeros, options.bits, group_size, order)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """Mean squared error of the outputs over their mean square; both weights (out, in)."""
    difference = (rounded - weight).to(hessian.dtype)
    whole = weight.to(hessian.dtype)
    error = ((difference @ hessian) * difference).sum()
    return float(error / ((whole @ hessian) * whole).sum().clamp(min=1e-30))


def _inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Upper U with U^T U = the inverse of the damped Hessian (section 3.3, step 3)."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1  # an input that is always 0: its column is rounded by itself
    mean = diagonal.mean()
    added = 0.0
    for times in _DAMPINGS:
        diagonal += (damp * times - added) * mean
        added = damp * times
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            factor: torch.Tensor
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(factor.isfinite().all()):
                return factor
    raise ConfigError(
        f"The calibration's inputs cannot be inverted with --damp {damp:g}; give more samples or a "
        "larger --damp."
    )


def _round(
    weight: torch.Tensor, factor: torch.Tensor, group_size: int, options: GptqOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (out, in) uint8, scales (out, groups) float16, zeros (out, groups) uint8."""
    left = weight.T.contiguous()  # (in, out): rows still to come carry the errors of those before
    columns = len(left)
    codes = torch.empty_like(left, dtype=torch.uint8)
    scales, zeros = [], []
    # Groups lie within blocks: a scale is chosen when its columns are all up to date.
    block = group_size * max(1, _BLOCK // group_size) if group_size < columns else _BLOCK
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty_like(left[start:stop])
        for i in range(start, stop):
            if i % group_size == 0:
                scale, zero = _grid(left[i : i + group_size], options)
                scales.append(scale)
                zeros.append(zero)
            code = (left[i] / scale + zero).round().clamp(0, 2**options.bits - 1)
            codes[i] = code
            error = (left[i] - scale * (code - zero)) / factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            errors[i - start] = error
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return (
        codes.T.contiguous(),
        torch.stack(scales, dim=1).half(),
        torch.stack(zeros, dim=1).to(torch.uint8),
    )


def _grid(group: torch.Tensor, options: GptqOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point (out,) of one group (group_size, out), the scale as float16 holds it."""
    top = 2**options.bits - 1
    low, high = group.amin(dim=0).clamp(max=0), group.amax(dim=0).clamp(min=0)
    if options.symmetric:
        scale = torch.maximum(-low, high) * (2 / top)
        zero = torch.full_like(scale, 2 ** (options.bits - 1))
    else:
        scale = (high - low) / top
        zero = (-low / scale.clamp(min=_SMALLEST_SCALE)).round().clamp(max=top)
        # Never 0: stored less one it would be -1, which some readers let overflow.
        scale = torch.where(zero < 1, high / (top - 1), scale)
        zero = zero.clamp(min=1)
    return scale.clamp(min=_SMALLEST_SCALE).half().to(group.dtype), zero
