"""Weights that are multiplied as they are packed, by the compiled kernels of groupwise.cpp."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.kernels.library import has_bfloat16
from engine.quant.groupwise import GroupwiseWeight, unpack_nibbles

_UNIT = 32  # columns
# Up to so many rows of x each weight is widened in registers and multiplied there; for more rows,
# pieces of the weight are widened in memory and multiplied by torch.
_MAX_ROWS = 16
_MIN_ROWS_BFLOAT16, _MAX_ROWS_BFLOAT16 = 3, 96  # the same where the CPU multiplies bfloat16
_PIECE_ELEMENTS = 2**20  # widened at once: they stay in the cache
_PACKED_ROWS = 1024  # brought to the kernel's layout at once
_CLOSE = 2.0**-20  # of an offset: what float32 rounding may have moved it by


@dataclass(frozen=True, slots=True)
class CompiledWeight:
    """A groupwise weight in the layout of groupwise.cpp, which says what the fields are."""

    library: ctypes.CDLL
    shape: tuple[int, int]
    codes: torch.Tensor  # (out, in * bits / 8) uint8
    scales: torch.Tensor  # (out, groups) float16 or float32
    offsets: torch.Tensor | None  # the same; None = `zero` is the zero point of all groups
    zero: float
    bits: int
    group_size: int
    order: torch.Tensor | None  # (in,) int64: column i is for input order[i]

    @classmethod
    def pack(cls, weight: GroupwiseWeight, library: ctypes.CDLL) -> "CompiledWeight | None":
        """None where the kernels do not have the sizes."""
        columns, group_size = weight.shape[1], weight.group_size
        if columns % _UNIT or (group_size % _UNIT and group_size != _UNIT // 2):
            return None
        scales, offsets, zero = _scales_and_offsets(weight)
        codes = weight.codes.contiguous() if weight.bits == 8 else _nibbles_by_halves(weight.codes)
        return cls(
            library,
            weight.shape,
            codes,
            scales,
            offsets,
            zero,
            weight.bits,
            group_size,
            weight.order,
        )

    @property
    def num_bytes(self) -> int:
        tensors = [self.codes, self.scales, self.offsets, self.order]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        ordered = x if self.order is None else x[:, self.order]
        if len(x) <= _MAX_ROWS_BFLOAT16 and self._multiplies_bfloat16(x):
            return self._multiply(self.library.groupwise_multiply_bfloat16, ordered).to(x.dtype)
        if len(x) <= _MAX_ROWS:
            return self._multiply(self.library.groupwise_multiply, ordered.float()).to(x.dtype)
        rows, columns = self.shape
        step = max(1, _PIECE_ELEMENTS // columns)
        products = [
            F.linear(ordered, self._select(slice(i, i + step)).dequantize(x.dtype))
            for i in range(0, rows, step)
        ]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def take_rows(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._select(rows).dequantize(dtype)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, columns as stored: (out, in) of `dtype`."""
        direct = dtype if dtype == torch.bfloat16 else torch.float32
        out = torch.empty(self.shape, dtype=direct)
        self.library.groupwise_dequantize(
            *self._arguments(), out.data_ptr(), direct == torch.bfloat16
        )
        return out.to(dtype)

    def _multiplies_bfloat16(self, x: torch.Tensor) -> bool:
        return (
            x.dtype == torch.bfloat16
            and len(x) >= _MIN_ROWS_BFLOAT16
            and has_bfloat16(self.library)
        )

    def _multiply(self, function: Callable[..., None], x: torch.Tensor) -> torch.Tensor:
        """x (n, in) -> (n, out) float32."""
        x = x.contiguous()
        out = torch.empty(len(x), self.shape[0])
        function(*self._arguments(), x.data_ptr(), len(x), out.data_ptr())
        return out

    def _select(self, rows: torch.Tensor | slice) -> "CompiledWeight":
        codes = self.codes[rows]
        return CompiledWeight(
            self.library,
            (len(codes), self.shape[1]),
            codes,
            self.scales[rows],
            None if self.offsets is None else self.offsets[rows],
            self.zero,
            self.bits,
            self.group_size,
            self.order,
        )

    def _arguments(self) -> tuple[object, ...]:
        return (
            self.codes.data_ptr(),
            self.scales.data_ptr(),
            None if self.offsets is None else self.offsets.data_ptr(),
            self.zero,
            *self.shape,
            self.group_size,
            self.bits,
            self.scales.itemsize,
        )


def _scales_and_offsets(
    weight: GroupwiseWeight,
) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """Scales, offsets or None, and the zero point of all groups; in half precision if exact."""
    scales = weight.scales.contiguous()
    first = weight.zeros.flatten()[0]
    if bool((weight.zeros == first).all()):
        return _halved(scales) if _is_exact(scales, 0.0) else scales.float(), None, float(first)
    offsets = -weight.zeros.float() * scales.float()
    if _is_exact(scales, 0.0) and _is_exact(offsets, _CLOSE):
        return _halved(scales), _halved(offsets), 0.0
    return scales.float(), offsets.contiguous(), 0.0


def _halved(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.to(torch.float16)


def _is_exact(numbers: torch.Tensor, tolerance: float) -> bool:
    """Whether half precision holds the numbers, up to a share of each."""
    if numbers.dtype == torch.float16:
        return True
    exact = numbers.float()
    return bool(((_halved(exact).float() - exact).abs() <= tolerance * exact.abs()).all())


def _nibbles_by_halves(codes: torch.Tensor) -> torch.Tensor:
    """Neighbours in a byte -> byte i of a unit has its columns i and 16 + i."""
    packed = torch.empty_like(codes)
    for start in range(0, len(codes), _PACKED_ROWS):
        piece = slice(start, start + _PACKED_ROWS)
        columns = unpack_nibbles(codes[piece])
        halves = columns.view(len(columns), -1, 2, _UNIT // 2)
        packed[piece] = (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)
    return packed
