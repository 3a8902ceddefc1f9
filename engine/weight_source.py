"""Where weights come from: what the readers of all formats offer to engine/weights.py."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from engine.quant.groupwise import GroupwiseWeight

Job = Callable[[], None]
Rows = torch.Tensor | slice | None  # which rows of a source are wanted, in order; None = all


class TensorFiles(Protocol):
    """Named tensors, mapped and read only when asked for. Safe to read from many threads."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is stored, on the CPU; perhaps a view of its file."""
        ...


class WeightSource(Protocol):
    """The weights of one checkpoint, by name."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    @property
    def packed(self) -> frozenset[str]:
        """Names of weights that `read_packed` gives as they are, without widening them."""
        ...

    def fill_jobs(
        self, name: str, target: torch.Tensor, rows: Rows = None, columns: slice | None = None
    ) -> list[Job]:
        """What copies a tensor into `target`, in its dtype and on its device.

        The jobs are independent. `rows` and `columns` are what `target` takes of the tensor.
        """
        ...

    def read_packed(self, name: str) -> GroupwiseWeight: ...

    def is_ignorable(self, name: str) -> bool:
        """Whether a tensor for which the decoder has no place carries nothing."""
        ...


@dataclass(frozen=True, slots=True)
class PlainSource:
    """Tensors of floats, each read whole."""

    files: TensorFiles

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.files.shapes

    @property
    def packed(self) -> frozenset[str]:
        return frozenset()

    def fill_jobs(
        self, name: str, target: torch.Tensor, rows: Rows = None, columns: slice | None = None
    ) -> list[Job]:
        return [partial(copy_part, self.files.read, name, target, rows, columns)]

    def read_packed(self, name: str) -> GroupwiseWeight:
        raise KeyError(name)

    def is_ignorable(self, name: str) -> bool:
        return False


def copy_part(
    read: Callable[[str], torch.Tensor],
    name: str,
    target: torch.Tensor,
    rows: Rows,
    columns: slice | None,
) -> None:
    """Read a tensor and copy some of its rows and columns into `target`."""
    tensor = read(name)
    if columns is not None:
        tensor = tensor[:, columns]
    target.copy_(tensor if rows is None else tensor[rows])
