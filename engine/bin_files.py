"""The pytorch_model*.bin files of a folder as one set of tensors, mapped, read only when asked for.

They are pickles: torch's restricted reader (weights_only) makes tensors of them and runs nothing.
"""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import CheckpointError
from engine.shards import shard_paths


@dataclass(frozen=True, slots=True)
class BinFiles:
    """One file, or the shards that pytorch_model.bin.index.json names."""

    shapes: dict[str, tuple[int, ...]]
    _tensors: dict[str, torch.Tensor]  # views of the mapped files

    @classmethod
    def open(cls, folder: Path) -> "BinFiles":
        """Raises CheckpointError on a missing or damaged file and on one that needs code to run."""
        tensors: dict[str, torch.Tensor] = {}
        for path in shard_paths(folder, "pytorch_model.bin", "pytorch_model*.bin"):
            content = _load(path)
            if not isinstance(content, dict) or not all(
                isinstance(tensor, torch.Tensor) for tensor in content.values()
            ):
                raise CheckpointError(f"{path} does not hold named tensors and nothing else.")
            tensors |= content
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors)

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is stored, a view of the mapped file."""
        return self._tensors[name]


def _load(path: Path) -> object:
    try:
        # Files older than torch 1.6 are not archives and cannot be mapped.
        is_archive = _starts_as_archive(path)
        if is_archive:
            _refuse_compressed(path)
        content: object = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True if is_archive else None
        )
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path.parent} has no {path.name}.") from exc
    except CheckpointError:
        raise
    except pickle.UnpicklingError as exc:
        raise CheckpointError(
            f"{path} is damaged, or more than tensors: it could only be read by running code that "
            "it brings, which is refused."
        ) from exc
    except Exception as exc:  # whatever the damage makes the reader stumble over
        raise CheckpointError(f"{path} is not a valid PyTorch file: {exc!r}.") from exc
    return content


def _refuse_compressed(path: Path) -> None:
    """torch writes no compressed archives. Mapped, they would be other weights without any error;
    unpacked, a few megabytes can be more than the memory.
    """
    with zipfile.ZipFile(path) as archive:
        compressed = [info.filename for info in archive.infolist() if info.compress_type]
    if compressed:
        raise CheckpointError(f"{path} is compressed ({compressed[0]!r}), which no weights are.")


def _starts_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
