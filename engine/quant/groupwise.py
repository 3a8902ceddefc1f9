"""Integer weights with a scale and a zero point for each group of input columns of each row.

The one form that GPTQ, AWQ, GGUF and quantizing on load are brought to; kernels repack it.
Multiplying here is dequantize-then-matmul, the oracle of all kernels.
"""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

Bits = Literal[4, 8]


class QuantizedWeight(Protocol):
    """A weight (out_features, in_features) that knows how to multiply."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def num_bytes(self) -> int: ...

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, in_features) of floats -> (n, out_features) of the same dtype."""
        ...


class QuantizedTable(QuantizedWeight, Protocol):
    """A quantized weight of which rows can be looked up."""

    def take_rows(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """rows (n,) int64 -> (n, in_features) of `dtype`."""
        ...


@dataclass(frozen=True, slots=True)
class GroupwiseWeight:
    """w[row, column] = scales[row, group] * (code - zeros[row, group]).

    Columns are stored in the order in which consecutive ones share a group: column i of the codes
    is for input `order[i]`, and its group is i // group_size.
    """

    codes: torch.Tensor  # uint8: (out, in) for 8 bits; (out, in / 2) for 4, the low nibble first
    scales: torch.Tensor  # (out, groups) of floats
    zeros: torch.Tensor  # (out, groups) uint8, or of floats: zero points between codes
    bits: Bits
    group_size: int
    order: torch.Tensor | None = None  # (in,) int64; None = as they are

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * (8 // self.bits)

    @property
    def num_bytes(self) -> int:
        tensors = [self.codes, self.scales, self.zeros]
        tensors += [] if self.order is None else [self.order]
        return sum(tensor.nbytes for tensor in tensors)

    def unpacked(self) -> torch.Tensor:
        """One code in a byte, columns as stored: (out, in) uint8."""
        return self.codes if self.bits == 8 else unpack_nibbles(self.codes)

    def dequantize(self) -> torch.Tensor:
        """The weight in float32, columns in the order of the inputs: (out, in)."""
        rows, columns = self.shape
        codes = self.unpacked().view(rows, -1, self.group_size)
        centred = codes.float() - self.zeros.unsqueeze(-1)
        values = (centred * self.scales.float().unsqueeze(-1)).view(rows, columns)
        if self.order is None:
            return values
        return torch.empty_like(values).index_copy_(1, self.order, values)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantize().to(x.dtype))

    def take_rows(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.select_rows(rows).dequantize().to(dtype)

    def select_rows(self, rows: torch.Tensor | slice) -> "GroupwiseWeight":
        return replace(
            self, codes=self.codes[rows], scales=self.scales[rows], zeros=self.zeros[rows]
        )

    def take_columns(self, columns: slice, group_size: int) -> "GroupwiseWeight":
        """Some columns, as stored, of a weight without `order`: whole groups of `group_size`, or
        any of a weight with one group, which then has one of that size.
        """
        per_byte = 8 // self.bits
        groups = slice(None)
        if self.scales.shape[1] > 1:
            groups = slice(columns.start // group_size, -(-columns.stop // group_size))
        return replace(
            self,
            codes=self.codes[:, columns.start // per_byte : columns.stop // per_byte].contiguous(),
            scales=self.scales[:, groups].contiguous(),
            zeros=self.zeros[:, groups].contiguous(),
            group_size=group_size,
        )

    def to(self, device: torch.device) -> "GroupwiseWeight":
        return replace(
            self,
            codes=self.codes.to(device),
            scales=self.scales.to(device),
            zeros=self.zeros.to(device),
            order=None if self.order is None else self.order.to(device),
        )


@dataclass(frozen=True, slots=True)
class StackedWeight:
    """Rows of several weights of different kinds, one below the other."""

    parts: tuple[QuantizedWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.multiply(x) for part in self.parts], dim=-1)


def concatenate(parts: ListLike[GroupwiseWeight]) -> GroupwiseWeight | None:
    """The rows of all parts as one weight; None where they are not of one kind."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if (part.bits, part.group_size) != (first.bits, first.group_size):
            return None
        if not _same_order(part.order, first.order):
            return None
    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts]),
    )


def _same_order(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """(rows, columns) uint8 below 16 -> (rows, columns / 2), even columns in the low nibbles."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of pack_nibbles."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
