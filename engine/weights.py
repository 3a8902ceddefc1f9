"""Fills a decoder from a checkpoint: safetensors or GGUF, converted to the dtype it is served in.

Sources are read piece by piece from the mapped files straight into the decoder's parameters,
several at a time, so that peak memory stays near the size of the model as served.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F

from engine import malloc
from engine.backends.base import Backend
from engine.bin_files import BinFiles
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.gguf_source import GgufSource
from engine.kernels.library import cpu_flags
from engine.layers.embedding import Embedding
from engine.layers.linear import Linear
from engine.layers.module import Module
from engine.models import registry
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.parallel import ALONE, TensorParallel
from engine.placement import Placement, place_tensors
from engine.quant.config import read_quantization
from engine.quant.groupwise import (
    GroupwiseWeight,
    QuantizedWeight,
    StackedWeight,
    concatenate,
)
from engine.quant.packed_source import PackedSource
from engine.quant.quantize import Target, quantize
from engine.safetensors_files import SafetensorsFiles
from engine.sharding import column_unit, shard_columns, shard_placements
from engine.weight_source import Job, PlainSource, TensorFiles, WeightSource

_GROUP_BYTES = 2**25
_PLAIN_UNIT, _QUANTIZED_UNIT = 16, 32
_NORMALIZED_ROWS = 4096  # at once, to bound the memory that it takes
# --quantization makes these smaller: the large matrices of every layer, and of experts
_QUANTIZED_MODULES = (".qkv", ".output", ".gate_up", ".down")

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
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
    quantization: Target | None = None,
    parallel: TensorParallel = ALONE,
    config: DecoderConfig | None = None,
) -> Decoder:
    """Build the checkpoint's decoder, or one rank of it, on `device` and fill every parameter.

    `quantization` makes plain weights of the layers' matrices smaller on the way; `config` is what
    `decoder_config` gave, perhaps with other positions. Raises CheckpointError naming the tensor
    that is missing, unexpected, of a wrong shape or of a type that cannot be read, and ConfigError
    where the quantization does not suit the checkpoint.
    """
    config = config or decoder_config(checkpoint)
    unit = sharding_unit(checkpoint, quantization)
    whole = Decoder(config, backend, dtype=dtype, device=device)
    decoder = whole
    if parallel.size > 1:
        decoder = Decoder(config, backend, dtype=dtype, device=device, parallel=parallel, unit=unit)
    source = open_source(
        checkpoint, keeps_packed=backend.has_groupwise_kernels and quantization is None
    )
    if quantization is not None and source.packed:
        raise ConfigError(
            f"--quantization {quantization} is for plain weights; {checkpoint.path} is quantised."
        )
    placements = place_tensors(whole, checkpoint, source.shapes, source.is_ignorable)
    shapes = {name: tensor.shape for name, tensor in whole.parameters().items()}
    placements = shard_placements(placements, shapes, config, parallel, unit)
    loader = _Loader(source, placements, dtype, device, backend, quantization, decoder)
    with (
        malloc.returned_when_freed(),
        _single_threaded_torch(),
        ThreadPoolExecutor(_num_cores()) as pool,
    ):
        for group in _groups(decoder.modules()):
            for work in (loader.fill(group), loader.finish(group)):
                for _ in pool.map(_call, work):
                    pass
    if config.normalizes_head:
        decoder.head.weight = backend.prepare_plain(_normalized_rows(decoder.head))
    if config.tie_word_embeddings:
        decoder.head.weight = decoder.embedding.weight
    return decoder


def sharding_unit(checkpoint: Checkpoint, quantization: Target | None) -> int:
    """Columns that tensor parallelism keeps together, so that groups stay whole."""
    packed = read_quantization(checkpoint)
    if packed is not None and packed.group_size is not None:
        return packed.group_size
    is_plain = packed is None and quantization is None and checkpoint.format != "gguf"
    return _PLAIN_UNIT if is_plain else _QUANTIZED_UNIT


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
    # elsewhere than on Linux nothing tells, and float32 is always right
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16"))


def _call(job: Job) -> None:
    job()


def _groups(modules: dict[str, Module]) -> Iterator[dict[str, Module]]:
    """Modules that are filled at the same time: enough to do for all threads, and few enough that
    what is in memory before it is quantized stays small.
    """
    group: dict[str, Module] = {}
    num_bytes = 0
    for name, module in modules.items():
        group[name] = module
        num_bytes += sum(tensor.nbytes for tensor in module.parameters().values())
        if num_bytes >= _GROUP_BYTES:
            yield group
            group, num_bytes = {}, 0
    yield group


class _Loader:
    """Fills modules from a source, quantizes them, and brings them to the backend's form."""

    def __init__(
        self,
        source: WeightSource,
        placements: list[Placement],
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
        quantization: Target | None,
        decoder: Decoder,
    ) -> None:
        self._source = source
        self._placements: dict[str, list[Placement]] = defaultdict(list)
        for placement in placements:
            self._placements[placement.parameter].append(placement)
        self._dtype = dtype
        self._device = device
        self._backend = backend
        self._quantization = quantization
        self._parallel = decoder.parallel
        self._config = decoder.config
        self._unit = decoder.unit

    def fill(self, modules: dict[str, Module]) -> list[Job]:
        """What fills the parameters of `modules`, in any order."""
        jobs: list[Job] = []
        for name, module in modules.items():
            for parameter, tensor in module.parameters().items():
                parts = self._placements[f"{name}.{parameter}"]
                are_packed = all(part.source in self._source.packed for part in parts)
                if parameter == "weight" and parts and are_packed:
                    if isinstance(module, Linear):
                        jobs.append(partial(self._fill_packed, module, parts))
                        continue
                    if isinstance(module, Embedding):
                        jobs.append(partial(self._fill_table, module, parts[0]))
                        continue
                target = _allocate(tensor.shape, self._dtype, self._device)
                setattr(module, parameter, target)
                if not parts:  # a bias that only rank 0 adds
                    target.zero_()
                for part in parts:
                    rows = target[part.rows]
                    jobs += self._source.fill_jobs(part.source, rows, part.row_order, part.columns)
        return jobs

    def finish(self, modules: dict[str, Module]) -> list[Job]:
        """What comes after `fill`: quantizing, where it is wanted, and the backend's own form."""
        jobs: list[Job] = []
        for name, module in modules.items():
            if not isinstance(module, Linear | Embedding):
                continue
            if isinstance(module, Linear) and self._is_quantized(name):
                jobs.append(partial(self._quantize, module))
            elif not (name == "head" and self._config.normalizes_head):
                jobs.append(partial(self._prepare_plain, module))
        return jobs

    def _is_quantized(self, name: str) -> bool:
        return self._quantization is not None and name.endswith(_QUANTIZED_MODULES)

    def _fill_packed(self, module: Linear, parts: list[Placement]) -> None:
        columns = parts[0].columns  # what is cut by columns has one part
        if columns is not None:
            weight = self._read_packed(parts[0])
            gather = partial(
                self._parallel.all_gather,
                total=weight.shape[1],
                unit=column_unit(parts[0].parameter, self._config, self._unit),
            )
            weight, needs_all_inputs = shard_columns(weight, columns, self._parallel)
            module.gather = gather if needs_all_inputs else None
            module.weight = self._prepare(weight)
            return
        prepared = tuple(map(self._prepare, self._read_fused(parts)))
        module.weight = prepared[0] if len(prepared) == 1 else StackedWeight(prepared)

    def _fill_table(self, module: Embedding, part: Placement) -> None:
        module.weight = self._backend.prepare_table(
            self._read_packed(part).to(self._device), self._dtype
        )

    def _prepare(self, weight: GroupwiseWeight) -> QuantizedWeight:
        return self._backend.prepare(weight.to(self._device), self._dtype)

    def _read_fused(self, parts: list[Placement]) -> list[GroupwiseWeight]:
        """The rows of all parts as one weight, or as several where they differ in kind."""
        weights = [self._read_packed(part) for part in parts]
        joined = concatenate(weights)  # the parts go when this returns: more memory is needed next
        return weights if joined is None else [joined]

    def _read_packed(self, part: Placement) -> GroupwiseWeight:
        weight = self._source.read_packed(part.source)
        return weight if part.row_order is None else weight.select_rows(part.row_order)

    def _quantize(self, module: Linear) -> None:
        if isinstance(module.weight, torch.Tensor) and self._quantization is not None:
            quantized = quantize(module.weight, self._quantization)
            module.weight = self._backend.prepare(quantized, self._dtype)

    def _prepare_plain(self, module: Linear | Embedding) -> None:
        if isinstance(module.weight, torch.Tensor):
            module.weight = self._backend.prepare_plain(module.weight)


def _allocate(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as exc:  # torch's way to say out of memory
        raise ConfigError(f"The model's weights do not fit into the memory of {device}.") from exc


def _normalized_rows(head: Linear) -> torch.Tensor:
    """The head's weight, whose rows get a norm of 1 in place."""
    if not isinstance(head.weight, torch.Tensor):
        raise CheckpointError("A quantised output head whose rows are normalised is not supported.")
    for rows in torch.split(head.weight, _NORMALIZED_ROWS):
        rows.copy_(F.normalize(rows.float(), dim=1))
    return head.weight


def open_source(checkpoint: Checkpoint, *, keeps_packed: bool = False) -> WeightSource:
    """The weights of a checkpoint. Raises CheckpointError on files that cannot be read.

    `keeps_packed`: matrices of a GGUF file are read packed, and not widened.
    """
    if checkpoint.format == "gguf":
        return GgufSource.open(checkpoint.path, keeps_packed=keeps_packed)
    files: TensorFiles
    if any(checkpoint.path.glob("*.safetensors")):
        files = SafetensorsFiles.open(checkpoint.path)
    else:
        files = BinFiles.open(checkpoint.path)
    quantization = read_quantization(checkpoint)
    return PlainSource(files) if quantization is None else PackedSource.over(files, quantization)


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
