"""What has parameters of its own: a leaf of the decoder."""

from typing import Protocol

import torch


class Module(Protocol):
    """Its parameters are attributes of the same names."""

    def parameters(self) -> dict[str, torch.Tensor]:
        """The tensors to fill, by name."""
        ...
