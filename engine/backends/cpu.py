"""The backend for CPUs: compiled kernels for whole decoders, or for single products of others.

Where the kernels were not compiled it is the reference, with torch's own products for packed
integer weights.
"""

import logging
from dataclasses import dataclass

import torch

from engine.backends.base import ForwardPass
from engine.backends.reference import ReferenceBackend
from engine.kernels import library
from engine.kernels.forward import CompiledDecoder, reason_against
from engine.kernels.panels import pack, pack_plain
from engine.kv_cache import KVCache
from engine.models.decoder import Decoder
from engine.quant.groupwise import GroupwiseWeight, QuantizedTable, QuantizedWeight

logger = logging.getLogger(__name__)

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

    def __init__(self, *, compiled: bool = True, variant: str | None = None) -> None:
        """`variant` names the library of kernels; None = the best for this CPU."""
        self._library = None
        if compiled:
            self._library = library.load_variant(variant) if variant else library.load()

    @property
    def has_groupwise_kernels(self) -> bool:  # type: ignore[override]
        return self._library is not None

    def prepare(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedWeight:
        """Falls back on dequantize-then-matmul for groups that the kernels do not have."""
        if self._library is None:
            return _prepare_for_torch(weight, dtype)
        return pack(weight, dtype, self._library) or weight

    def prepare_table(self, weight: GroupwiseWeight, dtype: torch.dtype) -> QuantizedTable:
        return (self._library and pack(weight, dtype, self._library)) or weight

    def prepare_plain(self, weight: torch.Tensor) -> torch.Tensor | QuantizedTable:
        return (self._library and pack_plain(weight, self._library)) or weight

    def compile(self, decoder: Decoder, kv_cache: KVCache) -> ForwardPass:
        if self._library is None:
            return decoder
        reason = reason_against(decoder)
        if reason is None:
            return CompiledDecoder(decoder, kv_cache, self._library)
        logger.info("the compiled forward pass is not used: %s", reason)
        return decoder


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
