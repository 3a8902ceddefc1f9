"""How keys or values lie in their slots: as the model computes them, or as int8.

A slot holds one token of one layer: (num_kv_heads, head_dim) numbers. int8 takes scales for each
token and KV head, so that a slot is written once and never depends on what comes later.
"""

from dataclasses import dataclass

import torch

_LARGEST_CODE = 127
# The compiled kernels keep so many slots of a KV head together (engine/kernels/attention.h).
_TILE = 16
# Numbers with one scale, as in Q8_0 of GGUF. Some elements of Qwen2.5's keys are a hundred times
# larger than the others, always the same ones: with a scale for a whole head they cost precision.
_GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class PlainSlots:
    """Slots in the model's dtype. The compiled kernels use the memory in an order of their own."""

    data: torch.Tensor  # (num_slots, num_kv_heads, head_dim), a multiple of 16 slots

    @classmethod
    def allocate(
        cls, num_slots: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> "PlainSlots":
        num_slots = -(-num_slots // _TILE) * _TILE
        return cls(torch.empty((num_slots, num_heads, head_dim), dtype=dtype, device=device))

    @staticmethod
    def bytes_per_head(head_dim: int, dtype: torch.dtype) -> int:
        return head_dim * dtype.itemsize

    @property
    def num_kv_heads(self) -> int:
        return self.data.shape[1]

    def write(self, slots: torch.Tensor, numbers: torch.Tensor) -> None:
        """numbers: (n, num_kv_heads, head_dim) into `slots` (n,)."""
        self.data.index_copy_(0, slots, numbers)

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """(n, num_kv_heads, head_dim) of `slots` (n,)."""
        return self.data.index_select(0, slots)

    def tensors(self) -> list[torch.Tensor]:
        return [self.data]


@dataclass(frozen=True, slots=True)
class Int8Slots:
    """Slots of codes from -127 to 127; a number is its code times the scale of its group of a head.

    Scales are in the model's dtype and rounded before codes are chosen, so that their rounding adds
    no error. What is not finite stays so: it makes the scale NaN or infinite.
    """

    codes: torch.Tensor  # (num_slots, num_kv_heads, head_dim) int8
    scales: torch.Tensor  # (num_slots, num_kv_heads, groups of a head)

    @classmethod
    def allocate(
        cls, num_slots: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> "Int8Slots":
        return cls(
            torch.empty((num_slots, num_heads, head_dim), dtype=torch.int8, device=device),
            torch.empty((num_slots, num_heads, _num_groups(head_dim)), dtype=dtype, device=device),
        )

    @staticmethod
    def bytes_per_head(head_dim: int, dtype: torch.dtype) -> int:
        return head_dim + _num_groups(head_dim) * dtype.itemsize

    @property
    def num_kv_heads(self) -> int:
        return self.codes.shape[1]

    def write(self, slots: torch.Tensor, numbers: torch.Tensor) -> None:
        """numbers: (n, num_kv_heads, head_dim) into `slots` (n,)."""
        floats = self._grouped(numbers.float())
        largest = floats.abs().amax(-1, keepdim=True)
        scales = (largest / _LARGEST_CODE).to(self.scales.dtype)
        divisors = scales.float().clamp_min(torch.finfo(torch.float32).tiny)  # all may be zero
        codes = (floats / divisors).round().clamp(-_LARGEST_CODE, _LARGEST_CODE)
        self.codes.index_copy_(0, slots, codes.to(torch.int8).flatten(-2))
        self.scales.index_copy_(0, slots, scales.squeeze(-1))

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """(n, num_kv_heads, head_dim) of `slots` (n,), in the model's dtype."""
        codes = self._grouped(self.codes.index_select(0, slots))
        return (codes * self.scales.index_select(0, slots).unsqueeze(-1)).flatten(-2)

    def _grouped(self, numbers: torch.Tensor) -> torch.Tensor:
        """(n, num_kv_heads, head_dim) -> (n, num_kv_heads, groups, numbers of a group)."""
        return numbers.reshape(*numbers.shape[:-1], self.scales.shape[-1], -1)

    def tensors(self) -> list[torch.Tensor]:
        return [self.codes, self.scales]


def _num_groups(head_dim: int) -> int:
    return head_dim // _GROUP_SIZE if head_dim % _GROUP_SIZE == 0 else 1


Slots = PlainSlots | Int8Slots
