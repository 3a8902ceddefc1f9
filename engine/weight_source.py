"""Where weights come from: what the readers of all formats offer to engine/weights.py."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from engine.quant.groupwise import GroupwiseWeight

Job = Callable[[], None]


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
        self, name: str, target: torch.Tensor, row_order: torch.Tensor | None
    ) -> list[Job]:
        """What copies a tensor into `target` (same shape), in its dtype and on its device.

        The jobs are independent. `row_order` is the tensor's row for each row of `target`; None =
        the same.
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
        self, name: str, target: torch.Tensor, row_order: torch.Tensor | None
    ) -> list[Job]:
        return [partial(copy_rows, self.files.read, name, target, row_order)]

    def read_packed(self, name: str) -> GroupwiseWeight:
        raise KeyError(name)

    def is_ignorable(self, name: str) -> bool:
        return False


def copy_rows(
    read: Callable[[str], torch.Tensor],
    name: str,
    target: torch.Tensor,
    row_order: torch.Tensor | None,
) -> None:
    """Read a tensor and copy its rows, in an order, into `target`."""
    tensor = read(name)
    target.copy_(tensor if row_order is None else tensor[row_order])
