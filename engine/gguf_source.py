"""The weights of a GGUF file, widened piece by piece from the mapped file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import CheckpointError
from engine.gguf import GgufFile, GgufTensor
from engine.quant.gguf import SUPPORTED_TYPES, fill_jobs
from engine.quant.groupwise import GroupwiseWeight
from engine.weight_source import Job, Rows


@dataclass(frozen=True, slots=True)
class GgufSource:
    """See engine/weight_source.py: WeightSource."""

    tensors: dict[str, GgufTensor]
    shapes: dict[str, tuple[int, ...]]
    packed: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: Path) -> "GgufSource":
        """Raises CheckpointError on a damaged file and on types that cannot be read."""
        tensors = GgufFile.open(path).tensors
        for tensor in tensors.values():
            if tensor.type_name not in SUPPORTED_TYPES:
                raise CheckpointError(
                    f"Tensor {tensor.name!r} is of type {tensor.type_name}, which is not "
                    f"supported; supported types are: {', '.join(sorted(SUPPORTED_TYPES))}."
                )
        return cls(tensors, {name: tensor.shape for name, tensor in tensors.items()})

    def fill_jobs(
        self, name: str, target: torch.Tensor, rows: Rows = None, columns: slice | None = None
    ) -> list[Job]:
        return fill_jobs(self.tensors[name], target, rows, columns)

    def read_packed(self, name: str) -> GroupwiseWeight:
        raise KeyError(name)

    def is_ignorable(self, name: str) -> bool:
        return False
