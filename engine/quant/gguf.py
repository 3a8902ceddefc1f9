"""What the bytes of GGUF tensors mean, in plain torch, on any device.

Each function of a type takes blocks as they lie in the file, (n, block bytes) uint8, and gives
their floats or takes them apart into groups of codes with scales, so that `dequantize` rounds
exactly as ggml's own code does (ggml-quants.c, the dequantize_row_* functions). They have no loops;
`fill_jobs` and `read_packed` bound the memory they need.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

from engine.gguf import GgufTensor
from engine.quant.groupwise import Bits, GroupwiseWeight, pack_nibbles
from engine.weight_source import Job, Rows

# Small enough that a piece's intermediates stay in a core's cache, large enough for few calls.
_PIECE_ELEMENTS_CPU = 2**17
_PIECE_ELEMENTS_CUDA = 2**24


@dataclass(frozen=True, slots=True)
class Groups:
    """Blocks taken apart: elements = codes * scales + offsets, or (codes - zero) * scales."""

    codes: torch.Tensor  # (n, groups, group size) uint8
    scales: torch.Tensor  # (n, groups, 1) float32
    offsets: torch.Tensor | None = None  # the same
    zero: int = 0


def fill_jobs(
    tensor: GgufTensor, target: torch.Tensor, rows: Rows, columns: slice | None
) -> list[Job]:
    """Cut the filling of `target` from `rows` and `columns` of `tensor` into independent jobs."""
    data = torch.from_numpy(tensor.data)
    if target.dim() == 1:
        return [partial(_fill_vector, tensor, target, data, rows)]
    limit = _PIECE_ELEMENTS_CUDA if target.is_cuda else _PIECE_ELEMENTS_CPU
    num_rows = max(1, limit // tensor.shape[1])
    data = data.view(tensor.shape[0], -1)
    if isinstance(rows, slice):
        data, rows = data[rows], None
    jobs: list[Job] = []
    for start in range(0, target.shape[0], num_rows):
        piece = slice(start, start + num_rows)
        order = None if rows is None else rows[piece]
        source = data[piece] if rows is None else data
        jobs.append(partial(_fill_rows, tensor, target[piece], source, order, columns))
    return jobs


def _fill_rows(
    tensor: GgufTensor,
    target: torch.Tensor,
    rows: torch.Tensor,
    order: torch.Tensor | None,
    columns: slice | None,
) -> None:
    data = rows if order is None else rows[order]
    blocks = data.to(target.device).view(-1, tensor.block_bytes)
    values = dequantize(tensor.type_name, blocks).view(data.shape[0], -1)
    target.copy_(values if columns is None else values[:, columns])


def _fill_vector(tensor: GgufTensor, target: torch.Tensor, data: torch.Tensor, rows: Rows) -> None:
    elements = dequantize(tensor.type_name, data.view(-1, tensor.block_bytes)).flatten()
    target.copy_(elements if rows is None else elements[rows])


def read_packed(tensor: GgufTensor) -> GroupwiseWeight:
    """A matrix of one of GROUPED_TYPES with its codes as they are: in 4 bits if they fit, else 8.

    Scales are in half precision where the file's are, so that nothing is lost.
    """
    rows, columns = tensor.shape
    bits: Bits = 4 if tensor.type_name in _FOUR_BITS else 8
    data = torch.from_numpy(tensor.data).view(rows, -1)
    take_apart = GROUPED_TYPES[tensor.type_name]
    group_size = take_apart(data[:1, : tensor.block_bytes]).codes.shape[2]
    shape = (rows, columns // group_size)
    scales_dtype = torch.float32 if tensor.type_name.endswith("_K") else torch.float16
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.uint8)
    scales = torch.empty(shape, dtype=scales_dtype)
    zeros: torch.Tensor | None = None
    num_rows = max(1, _PIECE_ELEMENTS_CPU // columns)
    for start in range(0, rows, num_rows):
        piece = slice(start, start + num_rows)
        groups = take_apart(data[piece].reshape(-1, tensor.block_bytes))
        piece_codes, piece_scales, piece_zeros = _with_zeros(groups)
        if zeros is None:
            zeros = torch.empty(shape, dtype=piece_zeros.dtype)
        flat = piece_codes.view(-1, columns)
        codes[piece] = pack_nibbles(flat) if bits == 4 else flat
        scales[piece] = piece_scales.view(-1, shape[1])
        zeros[piece] = piece_zeros.view(-1, shape[1])
    assert zeros is not None
    return GroupwiseWeight(codes, scales, zeros, bits, group_size)


_FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K")


def _with_zeros(groups: Groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and zero points: elements = (codes - zeros) * scales.

    A group without a scale is all offset: that is a code of 0 less a zero point of -1, times it.
    """
    if groups.offsets is None:
        zeros = torch.full(groups.scales.shape, groups.zero, dtype=torch.uint8)
        return groups.codes, groups.scales, zeros
    is_flat = groups.scales == 0
    codes = groups.codes.masked_fill(is_flat, 0)
    scales = torch.where(is_flat, groups.offsets, groups.scales)
    return codes, scales, torch.where(is_flat, -1.0, -groups.offsets / groups.scales)


def dequantize(type_name: str, blocks: torch.Tensor) -> torch.Tensor:
    """(n, block bytes) uint8 of a type in SUPPORTED_TYPES -> (n, block elements) float32."""
    if type_name in _FLOATS:
        return _FLOATS[type_name](blocks)
    groups = GROUPED_TYPES[type_name](blocks)
    if groups.offsets is None:
        elements = _signed(groups.codes, groups.zero) * groups.scales
    else:
        elements = groups.codes.float() * groups.scales + groups.offsets
    return elements.flatten(1)


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte `start` of each block, (n, 1) float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _one(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The same for blocks that are one group: (n, 1, 1)."""
    return _half(blocks, start).unsqueeze(-1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Low nibbles of all bytes, then the high ones: (..., m) uint8 -> (..., 2 * m) uint8."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _signed(values: torch.Tensor, zero: int) -> torch.Tensor:
    """values - zero as float32; the subtraction is in bytes, where it wraps to the right int8."""
    return (values - zero).view(torch.int8).float()


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """Bit i of the little-endian word as 0 or 16 at element i: (n, 4) uint8 -> (n, 32) uint8."""
    words = _spread_bits(packed.device).index_select(0, packed.flatten().int())
    return words.view(torch.uint8).view(-1, 32)


@cache
def _spread_bits(device: torch.device) -> torch.Tensor:
    """For each byte, 8 bytes of 0 or 16, one for each of its bits, as one word: (256,) int64."""
    values = torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(1)
    bits = (values >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return (bits << 4).view(torch.int64).squeeze(1)


def _f32(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _q4_0(blocks: torch.Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 2:]).unsqueeze(1), _one(blocks, 0), zero=8)


def _q4_1(blocks: torch.Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 4:]).unsqueeze(1), _one(blocks, 0), _one(blocks, 2))


def _q5_0(blocks: torch.Tensor) -> Groups:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return Groups(codes.unsqueeze(1), _one(blocks, 0), zero=16)


def _q5_1(blocks: torch.Tensor) -> Groups:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Groups(codes.unsqueeze(1), _one(blocks, 0), _one(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> Groups:
    return Groups((blocks[:, 2:] ^ 128).unsqueeze(1), _one(blocks, 0), zero=128)


def _crumbs(packed: torch.Tensor) -> torch.Tensor:
    """Two bits of each of 32 bytes, then the next two, ...: (n, 32 * m) -> (n, m, 4, 32) uint8."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device).unsqueeze(-1)
    return (packed.reshape(len(packed), -1, 1, 32) >> shifts) & 3


def _q2_k(blocks: torch.Tensor) -> Groups:
    scale = (blocks[:, :16] & 15).float() * _half(blocks, 80)
    minimum = (blocks[:, :16] >> 4).float() * _half(blocks, 82)
    codes = _crumbs(blocks[:, 16:80]).view(-1, 16, 16)
    return Groups(codes, scale.unsqueeze(-1), -minimum.unsqueeze(-1))


def _q3_k(blocks: torch.Tensor) -> Groups:
    """A set bit in the first 32 bytes means that 4 is not subtracted. The 16 scales have their low
    four bits in 8 bytes and the high two in 4, so that byte 8 + i % 4 holds those of scale i.
    """
    device = blocks.device
    bits = torch.arange(8, dtype=torch.uint8, device=device).unsqueeze(-1)
    high = ((blocks[:, :32].unsqueeze(1) >> bits) & 1).view(-1, 2, 4, 32)
    codes = (_crumbs(blocks[:, 32:96]) | (high << 2)).view(-1, 16, 16)
    low_scales = _nibbles(blocks[:, 96:104])
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=device).unsqueeze(-1)
    high_scales = ((blocks[:, 104:108].unsqueeze(1) >> shifts) & 3).flatten(1)
    scale = _signed(low_scales | (high_scales << 4), 32) * _half(blocks, 108)
    return Groups(codes, scale.unsqueeze(-1), zero=4)


def _k_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of the 8 groups of a Q4_K or Q5_K block: (n, 8, 1) float32 each.

    12 bytes hold 8 scales and 8 minimums of 6 bits: bytes 0-3 and 4-7 have the first four of each
    whole, and the top two bits of the last four, whose low nibbles are in bytes 8-11.
    """
    scales, mins, low = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((scales & 63, (low & 15) | ((scales >> 2) & 48)), dim=1)
    minimum = torch.cat((mins & 63, (low >> 4) | ((mins >> 2) & 48)), dim=1)
    return (
        (scale.float() * _half(blocks, 0)).unsqueeze(-1),
        -(minimum.float() * _half(blocks, 2)).unsqueeze(-1),
    )


def _q4_k(blocks: torch.Tensor) -> Groups:
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).view(-1, 8, 32)
    return Groups(codes, *_k_scales(blocks))


def _q5_k(blocks: torch.Tensor) -> Groups:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).unsqueeze(-1)
    high = ((blocks[:, 16:48].unsqueeze(1) >> shifts) & 1) << 4  # (n, 8, 32)
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).view(-1, 8, 32) | high
    return Groups(codes, *_k_scales(blocks))


def _q6_k(blocks: torch.Tensor) -> Groups:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).unsqueeze(-1)
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))  # (n, 2, 128)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3  # (n, 2, 4, 32)
    codes = (low | (high << 4).flatten(2)).view(-1, 16, 16)
    scale = blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 208)
    return Groups(codes, scale.unsqueeze(-1), zero=32)


_FLOATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
}
GROUPED_TYPES: dict[str, Callable[[torch.Tensor], Groups]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
SUPPORTED_TYPES = frozenset(_FLOATS) | frozenset(GROUPED_TYPES)
