"""Writes named tensors as the safetensors files of a hub folder, one shard in memory at a time."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from engine.errors import CheckpointError

_SHARD_BYTES = 2 * 2**30


class SafetensorsWriter:
    """`add` tensors in any order, then `close`: model.safetensors, or shards and their index."""

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        """`folder` exists and holds no weights."""
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._shard: dict[str, torch.Tensor] = {}
        self._shards: list[list[str]] = []  # names in each file that is written
        self._filled_bytes = 0
        self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Raises CheckpointError where a file cannot be written."""
        if self._shard and self._filled_bytes + tensor.nbytes > self._shard_bytes:
            self._write()
        self._shard[name] = tensor.contiguous().cpu()
        self._filled_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left and give the files their names. Raises CheckpointError."""
        self._write()
        if len(self._shards) == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self._shards):
            file_name = f"model-{i + 1:05}-of-{len(self._shards):05}.safetensors"
            self._part(i).rename(self._folder / file_name)
            weight_map |= dict.fromkeys(names, file_name)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _part(self, shard: int) -> Path:
        return self._folder / f"part-{shard}"

    def _write(self) -> None:
        path = self._part(len(self._shards))
        try:
            save_file(self._shard, path, {"format": "pt"})
            path.chmod(self._folder.stat().st_mode & 0o666)  # safetensors lets only the owner read
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(f"{path} cannot be written: {exc}.") from exc
        self._shards.append(list(self._shard))
        self._shard, self._filled_bytes = {}, 0
