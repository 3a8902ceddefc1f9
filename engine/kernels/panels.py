"""Weights in the layout of weights.h: 16 rows of whatever they were are one stream of bytes."""

import ctypes
from dataclasses import dataclass

import torch

from engine import huge_pages
from engine.kernels import abi
from engine.quant.groupwise import GroupwiseWeight

_UNIT = 32  # columns
_PACKED_ROWS = 1024  # brought to the layout at once, a multiple of the 16 of a panel
# What float16 may move a scale or an offset by, as a share of it: less than bfloat16 does to the
# weights themselves when they are widened.
_CLOSE = 2.0**-11
_pool = huge_pages.Pool()


@dataclass(frozen=True, slots=True)
class Panels:
    """A weight (out_features, in_features), plain or quantized, whose rows can be looked up."""

    library: ctypes.CDLL
    struct: abi.Weight
    memory: torch.Tensor  # uint8, what struct.panels points to
    order: torch.Tensor | None  # (in,) int32: column i is for input order[i]

    @property
    def shape(self) -> tuple[int, int]:
        return self.struct.rows, self.struct.columns

    @property
    def num_bytes(self) -> int:
        return self.memory.nbytes + (0 if self.order is None else self.order.nbytes)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, in_features) of floats -> (n, out_features) of the same dtype.

        With bfloat16 rows packed weights meet them as int8, else in float32. With an order x may
        have more columns than are taken: one rank's part of a weight multiplies the whole input.
        """
        struct = abi.Weight.from_buffer_copy(self.struct)
        floats = x.float()
        if self.order is not None:
            struct.order = None
            floats = floats[:, self.order]
        linear = abi.Linear(1, ctypes.pointer(struct), None)
        floats = floats.contiguous()
        out = torch.empty(len(x), self.struct.rows)
        self.library.multiply_rows(
            ctypes.byref(linear),
            x.dtype == torch.bfloat16,
            floats.data_ptr(),
            len(x),
            out.data_ptr(),
        )
        return out.to(x.dtype)

    def take_rows(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """rows (n,) int64 -> (n, in_features) of `dtype`."""
        rows = rows.contiguous()
        out = torch.empty(len(rows), self.struct.columns)
        self.library.read_rows(
            ctypes.byref(self.struct), rows.data_ptr(), len(rows), out.data_ptr()
        )
        return out.to(dtype)


def pack_plain(weight: torch.Tensor, library: ctypes.CDLL) -> Panels | None:
    """Of a float32 or bfloat16 weight; None for other types."""
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    kind = abi.FLOAT32 if weight.dtype == torch.float32 else abi.BFLOAT16
    rows, columns = weight.shape
    struct = abi.Weight(rows=rows, columns=columns, group_size=_UNIT, kind=kind)
    memory = _allocate(struct, library)
    library.pack_plain(ctypes.byref(struct), weight.contiguous().data_ptr(), struct.panels)
    return Panels(library, struct, memory, None)


def pack(weight: GroupwiseWeight, dtype: torch.dtype, library: ctypes.CDLL) -> Panels | None:
    """Of a quantized weight whose activations are of `dtype`; None where its groups do not fit.

    With bfloat16 activations scales and offsets are float16 where that moves them by no more than
    it does most numbers; else they are float16 only where it is exact.
    """
    rows, columns = weight.shape
    group_size = weight.group_size
    if columns % _UNIT or (group_size % _UNIT and group_size != _UNIT // 2):
        return None
    bits, shift = _num_bits(weight)
    scales, offsets = _scales_and_offsets(weight, dtype, has_offsets=shift is None)
    order = None if weight.order is None else weight.order.int().contiguous()
    struct = abi.Weight(
        order=None if order is None else order.data_ptr(),
        rows=rows,
        columns=columns,
        group_size=group_size,
        kind=abi.PACKED,
        bits=bits,
        has_offsets=offsets is not None,
        scale_bytes=scales.itemsize,
    )
    memory = _allocate(struct, library)
    panel_bytes = memory.nbytes // -(-rows // 16)
    for start in range(0, rows, _PACKED_ROWS):
        piece = slice(start, start + _PACKED_ROWS)
        codes = (weight.select_rows(piece).unpacked() + (shift or 0)).contiguous()
        part = abi.Weight.from_buffer_copy(struct)
        part.rows = len(codes)
        library.pack_codes(
            ctypes.byref(part),
            codes.data_ptr(),
            scales[piece].data_ptr(),
            None if offsets is None else offsets[piece].data_ptr(),
            memory.data_ptr() + start // 16 * panel_bytes,
        )
    return Panels(library, struct, memory, order)


def _allocate(struct: abi.Weight, library: ctypes.CDLL) -> torch.Tensor:
    memory = _pool.take(library.weight_bytes(ctypes.byref(struct)))
    struct.panels = memory.data_ptr()
    return memory


def _num_bits(weight: GroupwiseWeight) -> tuple[int, int | None]:
    """The fewest bits that the kernels have for the codes, and what to add to these.

    It brings the zero point of all groups to 2 ** (bits - 1), as codes without offsets have it;
    None where groups differ, or more bits would be needed: they need offsets.
    """
    largest = 15 if weight.bits == 4 else int(weight.codes.max())
    bits = next(bits for bits in (4, 5, 6, 8) if largest < 2**bits)
    first = float(weight.zeros.flatten()[0])
    shift = 2 ** (bits - 1) - int(first) if first.is_integer() else -1
    is_centred = 0 <= shift < 2**bits - largest and bool((weight.zeros == first).all())
    return bits, shift if is_centred else None


def _scales_and_offsets(
    weight: GroupwiseWeight, dtype: torch.dtype, has_offsets: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    tolerance = _CLOSE if dtype == torch.bfloat16 else 0.0
    scales = weight.scales
    is_half = _is_close(scales, tolerance)
    if not has_offsets:
        return scales.to(torch.float16 if is_half else torch.float32).contiguous(), None
    offsets = -weight.zeros.float() * scales.float()
    is_half = is_half and _is_close(offsets, max(tolerance, 2.0**-20))
    kept = torch.float16 if is_half else torch.float32
    return scales.to(kept).contiguous(), offsets.to(kept).contiguous()


def _is_close(numbers: torch.Tensor, tolerance: float) -> bool:
    """Whether float16 holds the numbers, up to a share of each."""
    if numbers.dtype == torch.float16:
        return True
    exact = numbers.float()
    return bool(((exact.half().float() - exact).abs() <= tolerance * exact.abs()).all())
