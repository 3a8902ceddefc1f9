"""The memory that holds keys and values, and how much of it to take.

A cache is the slots of keys and of values of each layer (engine/kv_slots.py), in blocks of
block_size; which sequence owns which block is engine/block_manager.py. The memory is not cleared:
attention reads only slots that the step's sequences have written.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from engine import huge_pages
from engine.config import KVCacheDtype
from engine.errors import ConfigError
from engine.kv_slots import Int8Slots, PlainSlots, Slots
from engine.models.config import DecoderConfig

_CPU_CAP_BYTES = 4 * 2**30
_CPU_SHARE = 0.3
_CUDA_SHARE = 0.9


_SLOTS: dict[KVCacheDtype, type[PlainSlots] | type[Int8Slots]] = {
    "auto": PlainSlots,
    "int8": Int8Slots,
}


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, in num_blocks * block_size slots each."""

    keys: Slots
    values: Slots

    @property
    def num_kv_heads(self) -> int:
        return self.keys.num_kv_heads


@dataclass(frozen=True, slots=True)
class KVCache:
    """The caches of all layers."""

    layers: list[LayerCache]
    num_blocks: int
    block_size: int

    @classmethod
    def allocate(
        cls,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> "KVCache":
        """Reserve the memory; on the CPU, pages are committed when they are first written.

        `dtype` is the model's, which "auto" stores.
        """
        num_slots = num_blocks * block_size
        kind = _SLOTS[kv_cache_dtype]

        def slots() -> Slots:
            return kind.allocate(num_slots, config.num_kv_heads, config.head_dim, dtype, device)

        try:
            layers = [LayerCache(slots(), slots()) for _ in range(config.num_layers)]
        except (
            RuntimeError
        ) as exc:  # torch's out-of-memory errors are RuntimeErrors on every device
            size = num_blocks * bytes_per_block(config, block_size, dtype, kv_cache_dtype)
            raise ConfigError(f"A KV cache of {size} bytes cannot be allocated.") from exc
        cache = cls(layers, num_blocks, block_size)
        if device.type == "cpu":
            for tensor in cache.tensors():
                huge_pages.advise(tensor)
        return cache

    def tensors(self) -> list[torch.Tensor]:
        """All memory of the cache."""
        slots = [half for layer in self.layers for half in (layer.keys, layer.values)]
        return [tensor for half in slots for tensor in half.tensors()]


def bytes_per_block(
    config: DecoderConfig,
    block_size: int,
    dtype: torch.dtype,
    kv_cache_dtype: KVCacheDtype = "auto",
) -> int:
    """Bytes of one block over all layers, keys and values."""
    head_bytes = _SLOTS[kv_cache_dtype].bytes_per_head(config.head_dim, dtype)
    return 2 * config.num_layers * block_size * config.num_kv_heads * head_bytes


def auto_kv_cache_bytes(device: torch.device) -> int:
    """How much memory to give the cache when nobody said: call it after the weights are loaded.

    CUDA: 90% of what is free. CPU: 30% of what is free, at most 4 GiB; a container's limit counts.
    """
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(free_bytes * _CUDA_SHARE)
    return min(_CPU_CAP_BYTES, int(free_cpu_bytes() * _CPU_SHARE))


def free_cpu_bytes(root: Path = Path("/")) -> int:
    """Memory that this process can still get: the machine's, or what its cgroup's limit leaves."""
    free: list[int | None] = [_machine_free_bytes(root / "proc/meminfo")]
    free += [_cgroup_free_bytes(folder, *_V2_FILES) for folder in _cgroup_folders(root, "")]
    free += [_cgroup_free_bytes(folder, *_V1_FILES) for folder in _cgroup_folders(root, "memory")]
    return max(0, min(value for value in free if value is not None))


_V2_FILES = ("memory.max", "memory.current", "inactive_file")
_V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _machine_free_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("The free memory cannot be read; give the KV cache's size.")


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup and its ancestors. Controller "" is cgroup v2."""
    mount = root / "sys/fs/cgroup" / controller
    folders = [mount]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux, or no cgroups: the mount point is then absent too
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = mount / path.lstrip("/")
            folders += [folder, *(p for p in folder.parents if p.is_relative_to(mount))]
    return folders


def _cgroup_free_bytes(
    folder: Path, limit_file: str, usage_file: str, cache_key: str
) -> int | None:
    """What the limit leaves, counting file pages that the kernel would drop; None without limit."""
    try:
        limit_text = (folder / limit_file).read_text().strip()
        usage = int((folder / usage_file).read_text())
        stat = dict(
            line.split(None, 1) for line in (folder / "memory.stat").read_text().splitlines()
        )
    except OSError:  # no such controller here
        return None
    if limit_text == "max":
        return None
    return int(limit_text) - usage + int(stat.get(cache_key, 0))
