"""Fills a decoder from a checkpoint: safetensors or GGUF, converted to the dtype it is served in.

Sources are read piece by piece from the mapped files straight into the decoder's parameters,
several at a time, so that peak memory stays near the size of the model as served.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from engine.backends.base import Backend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.gguf import GgufFile
from engine.models import registry
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.placement import Placement, place_tensors
from engine.quant.gguf import SUPPORTED_TYPES, fill_jobs
from engine.safetensors_files import SafetensorsFiles

_NORMALIZED_ROWS = 4096  # at once, to bound the memory that it takes

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def decoder_config(checkpoint: Checkpoint) -> DecoderConfig:
    """The decoder that a checkpoint describes. Raises CheckpointError on options we do not have."""
    family = registry.family(checkpoint.config["model_type"])
    return family.decoder_config(checkpoint.config)


def load_decoder(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, backend: Backend
) -> Decoder:
    """Build the checkpoint's decoder on `device` and fill every parameter.

    Raises CheckpointError naming the tensor that is missing, unexpected, of a wrong shape or of a
    type that cannot be read.
    """
    config = decoder_config(checkpoint)
    open_source = _open_gguf if checkpoint.format == "gguf" else _open_safetensors
    shapes, jobs_of = open_source(checkpoint)
    # Once without memory, so that a wrong config is reported instead of allocated.
    place_tensors(_build(config, backend, dtype, torch.device("meta")), checkpoint, shapes)
    decoder = _build(config, backend, dtype, device)
    placements = place_tensors(decoder, checkpoint, shapes)
    _run([job for placement in placements for job in jobs_of(placement)])
    if config.normalizes_head:
        for rows in torch.split(decoder.head.weight, _NORMALIZED_ROWS):
            rows.copy_(F.normalize(rows.float(), dim=1))
    return decoder


def resolve_dtype(config_dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype to serve in, from --dtype.

    "auto" is the checkpoint's own dtype, and for GGUF, which has none, bfloat16 where the device
    computes in it and float32 elsewhere. Raises ConfigError for an unknown name.
    """
    if config_dtype != "auto":
        if config_dtype not in _DTYPES:
            raise ConfigError(f"dtype {config_dtype!r} is not one of auto, {', '.join(_DTYPES)}.")
        return _DTYPES[config_dtype]
    if checkpoint.format == "gguf":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    own = checkpoint.config.get("dtype") or "float32"  # transformers' default too
    if not isinstance(own, str) or own not in _DTYPES:
        raise ConfigError(f"The checkpoint is in {own}; give a dtype out of {', '.join(_DTYPES)}.")
    return _DTYPES[own]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: nothing tells, and float32 is always right
        return False
    return any(flag in cpu for flag in ("avx512_bf16", "amx_bf16"))


_Job = Callable[[], None]
_Source = tuple[dict[str, tuple[int, ...]], Callable[[Placement], list[_Job]]]


def _open_safetensors(checkpoint: Checkpoint) -> _Source:
    files = SafetensorsFiles.open(checkpoint.path)

    def read(placement: Placement) -> None:
        target, order = placement.target, placement.row_order
        if order is None:
            files.read_into(placement.source, target)
        else:
            source = torch.empty_like(target, device="cpu")
            files.read_into(placement.source, source)
            target.copy_(source[order])

    return files.shapes, lambda placement: [partial(read, placement)]


def _open_gguf(checkpoint: Checkpoint) -> _Source:
    tensors = GgufFile.open(checkpoint.path).tensors
    for tensor in tensors.values():
        if tensor.type_name not in SUPPORTED_TYPES:
            raise CheckpointError(
                f"Tensor {tensor.name!r} is of type {tensor.type_name}, which is not supported; "
                f"supported types are: {', '.join(sorted(SUPPORTED_TYPES))}."
            )

    def jobs_of(placement: Placement) -> list[_Job]:
        tensor = tensors[placement.source]
        return fill_jobs(tensor, placement.target, placement.row_order)

    return {name: tensor.shape for name, tensor in tensors.items()}, jobs_of


def _build(
    config: DecoderConfig, backend: Backend, dtype: torch.dtype, device: torch.device
) -> Decoder:
    try:
        return Decoder(config, backend, dtype=dtype, device=device)
    except RuntimeError as exc:  # torch's way to say out of memory
        raise ConfigError(f"The model's weights do not fit into the memory of {device}.") from exc


def _run(jobs: list[_Job]) -> None:
    """Run every job, on as many threads as there are cores. The first exception is raised."""
    with _single_threaded_torch(), ThreadPoolExecutor(_num_cores()) as pool:
        for _ in pool.map(lambda job: job(), jobs):
            pass


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """The jobs are the parallelism: threads inside their operations would compete with them."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
