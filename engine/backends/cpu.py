"""The backend for CPUs: the reference, with kernels for packed integer weights.

They multiply without dequantizing the weight first: at one row that is what memory allows. Ours are
engine/kernels/groupwise.py; where they were not compiled, torch has some.
"""

from dataclasses import dataclass

import torch

from engine.backends.reference import ReferenceBackend
from engine.kernels import library
from engine.kernels.groupwise import CompiledWeight
from engine.quant.groupwise import GroupwiseWeight, QuantizedTable, QuantizedWeight

_INT4_GROUP_SIZES = (32, 64, 128, 256)
_INT4_ROWS = 16  # the kernel wants a multiple
_PACKED_ROWS = 256  # brought to the kernel's layout at once


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """Packed for aten::_weight_int4pack_mm_for_cpu."""

    shape: tuple[int, int]
    packed: torch.Tensor
    scales_and_zeros: torch.Tensor  # (groups, out, 2) in the dtype of the activations
    group_size: int
    order: torch.Tensor | None

    @classmethod
    def pack(cls, weight: GroupwiseWeight, dtype: torch.dtype) -> "Int4Weight":
        scales = weight.scales.float()
        offsets = (8 - weight.zeros.float()) * scales  # the kernel subtracts 8 from each code
        pairs = torch.stack((scales, offsets), dim=-1).transpose(0, 1).contiguous()
        packed = torch.empty_like(weight.codes)
        # The operator wants each code in 32 bits; its layout is by blocks of 64 rows at most.
        for start in range(0, len(packed), _PACKED_ROWS):
            piece = slice(start, start + _PACKED_ROWS)
            codes = weight.select_rows(piece).unpacked().int()
            packed[piece] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        return cls(weight.shape, packed, pairs.to(dtype), weight.group_size, weight.order)

    @property
    def num_bytes(self) -> int:
        order = 0 if self.order is None else self.order.nbytes
        return self.packed.nbytes + self.scales_and_zeros.nbytes + order

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        ordered = x if self.order is None else x[:, self.order]
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            ordered.contiguous(), self.packed, self.group_size, self.scales_and_zeros
        )
        return product


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """One scale a row, for aten::_weight_int8pack_mm."""

    codes: torch.Tensor  # (out, in) int8
    scales: torch.Tensor  # (out,) in the dtype of the activations

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(
            x.contiguous(), self.codes, self.scales
        )
        return product


class CpuBackend(ReferenceBackend):
    """See engine/backends/base.py: Backend."""

    name = "cpu"

    def __init__(self, *, compiled: bool = True) -> None:
        self._library = library.load() if compiled else None

    @property
    def has_groupwise_kernels(self) -> bool:  # type: ignore[override]
        return self._library is not None

    def prepare(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedWeight:
        """Falls back on dequantize-then-matmul for groups that the kernels do not have."""
        if self._library is None:
            return _prepare_for_torch(weight, dtype)
        return CompiledWeight.pack(weight, self._library) or weight

    def prepare_table(self, weight: GroupwiseWeight) -> QuantizedTable:
        return (self._library and CompiledWeight.pack(weight, self._library)) or weight


def _prepare_for_torch(weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedWeight:
    rows, columns = weight.shape
    if weight.bits == 4:
        if weight.group_size in _INT4_GROUP_SIZES and rows % _INT4_ROWS == 0:
            return Int4Weight.pack(weight, dtype)
        return weight
    is_whole = weight.group_size == columns and weight.order is None
    if is_whole and bool((weight.zeros == 128).all()):
        codes = (weight.codes ^ 128).view(torch.int8)  # less 128
        return Int8Weight(codes, weight.scales.flatten().to(dtype))
    return weight
