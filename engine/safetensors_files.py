"""The safetensors files of a folder as one set of tensors, mapped and read only when asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import CheckpointError
from engine.shards import shard_paths

_READABLE = ("F64", "F32", "F16", "BF16")
_PACKED = (".qweight", ".qzeros", ".g_idx")  # of quantized modules: int32


@dataclass(frozen=True, slots=True)
class SafetensorsFiles:
    """One file, or the shards that model.safetensors.index.json names."""

    shapes: dict[str, tuple[int, ...]]
    _files: dict[str, Any]  # tensor name -> the opened file that holds it

    @classmethod
    def open(cls, folder: Path) -> "SafetensorsFiles":
        """Raises CheckpointError on a missing or damaged file and on tensors not of floats."""
        shapes: dict[str, tuple[int, ...]] = {}
        files: dict[str, Any] = {}
        for path in shard_paths(folder, "model.safetensors", "*.safetensors"):
            try:
                file: Any = safe_open(path, framework="pt", device="cpu")
                for name in file.keys():  # noqa: SIM118 - not a dict
                    view = file.get_slice(name)
                    readable = ("I32",) if name.endswith(_PACKED) else _READABLE
                    if view.get_dtype() not in readable:
                        raise CheckpointError(
                            f"Tensor {name!r} is of the unsupported type {view.get_dtype()}."
                        )
                    shapes[name] = tuple(view.get_shape())
                    files[name] = file
            except FileNotFoundError as exc:
                raise CheckpointError(f"{folder} has no {path.name}.") from exc
            except (SafetensorError, OSError) as exc:
                raise CheckpointError(f"{path} is not a valid safetensors file: {exc}.") from exc
        return cls(shapes, files)

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is stored, a view of the mapped file."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor
