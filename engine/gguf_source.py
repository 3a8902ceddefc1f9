"""The weights of a GGUF file, packed as they are or widened piece by piece from the mapped file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import CheckpointError
from engine.gguf import GgufFile, GgufTensor
from engine.quant.gguf import GROUPED_TYPES, SUPPORTED_TYPES, fill_jobs, read_packed
from engine.quant.groupwise import GroupwiseWeight
from engine.weight_source import Job, Rows


@dataclass(frozen=True, slots=True)
class GgufSource:
    """See engine/weight_source.py: WeightSource."""

    tensors: dict[str, GgufTensor]
    shapes: dict[str, tuple[int, ...]]
    packed: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: Path, *, keeps_packed: bool) -> "GgufSource":
        """Raises CheckpointError on a damaged file and on types that cannot be read.

        `keeps_packed`: matrices of integer types are read packed.
        """
        tensors = GgufFile.open(path).tensors
        for tensor in tensors.values():
            if tensor.type_name not in SUPPORTED_TYPES:
                raise CheckpointError(
                    f"Tensor {tensor.name!r} is of type {tensor.type_name}, which is not "
                    f"supported; supported types are: {', '.join(sorted(SUPPORTED_TYPES))}."
                )
        packed = frozenset(
            name
            for name, tensor in tensors.items()
            if keeps_packed and len(tensor.shape) == 2 and tensor.type_name in GROUPED_TYPES
        )
        return cls(tensors, {name: tensor.shape for name, tensor in tensors.items()}, packed)

    def fill_jobs(
        self, name: str, target: torch.Tensor, rows: Rows = None, columns: slice | None = None
    ) -> list[Job]:
        return fill_jobs(self.tensors[name], target, rows, columns)

    def read_packed(self, name: str) -> GroupwiseWeight:
        return read_packed(self.tensors[name])

    def is_ignorable(self, name: str) -> bool:
        return False
