"""What loading a model tells: its phases with seconds and bytes, and one line on what was found.

Byte counts are of this process, the number of parameters is the model's.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Literal

import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.gguf import GgufFile
from engine.layers.embedding import Embedding
from engine.layers.linear import Linear
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.quant.config import QuantizationConfig, read_quantization
from engine.shards import shard_paths

logger = logging.getLogger(__name__)


@contextmanager
def phase(name: str) -> Iterator[dict[str, object]]:
    """Log how long the block took, with the fields that it puts into the dict it gets.

    With "read_bytes" among them the speed is logged as well.
    """
    fields: dict[str, object] = {}
    started = time.perf_counter()
    yield fields
    seconds = time.perf_counter() - started
    read_bytes = fields.get("read_bytes")
    if isinstance(read_bytes, int):
        fields["gigabytes_per_second"] = round(read_bytes / seconds / 1e9, 2)
    logger.info(name, extra={"fields": {"seconds": round(seconds, 3), **fields}})


def describe_model(
    checkpoint: Checkpoint, config: DecoderConfig, quantized_on_load: Literal["int8", "int4"] | None
) -> dict[str, object]:
    """What the model is, apart from how much memory it was given, as fields of a log record."""
    return {
        "path": str(checkpoint.path),
        "model_type": checkpoint.config["model_type"],
        "num_parameters": count_parameters(config),
        "quantization": describe_quantization(checkpoint, quantized_on_load),
        "trained_context": config.trained_context,
        "rope_scaling": describe_positions(config),
    }


def count_parameters(config: DecoderConfig) -> int:
    """Numbers in the weights however they are packed; a tied head is not counted again."""
    meta = torch.device("meta")
    decoder = Decoder(config, ReferenceBackend(), dtype=torch.float32, device=meta)
    return sum(tensor.numel() for tensor in decoder.parameters().values())


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of the weights as they are served."""
    total = 0
    for module in decoder.modules().values():
        total += sum(tensor.nbytes for tensor in module.parameters().values())
        if isinstance(module, Linear | Embedding) and not isinstance(module.weight, torch.Tensor):
            total += module.weight.num_bytes
    return total


def file_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the files that hold the weights."""
    if checkpoint.format == "gguf":
        return checkpoint.path.stat().st_size
    paths = shard_paths(checkpoint.path, "model.safetensors", "*.safetensors")
    if not paths:
        paths = shard_paths(checkpoint.path, "pytorch_model.bin", "pytorch_model*.bin")
    return sum(path.stat().st_size for path in paths)


def describe_quantization(checkpoint: Checkpoint, on_load: Literal["int8", "int4"] | None) -> str:
    """As in "gptq 4 bit, group 128, act-order", "gguf Q5_0, Q8_0", "int4 on load" or "none"."""
    parts = []
    if checkpoint.format == "gguf":
        parts.append("gguf " + ", ".join(_gguf_types(GgufFile.open(checkpoint.path))))
    else:
        packed = read_quantization(checkpoint)
        if packed is not None:
            parts.append(_describe_packed(packed))
    if on_load is not None:
        parts.append(f"{on_load} on load")
    return "; ".join(parts) or "none"


def describe_positions(config: DecoderConfig) -> str:
    """How positions differ from plain rotary embedding, as in "yarn, factor 4 over 32768"."""
    if config.rope is None:
        return "alibi"
    scaling = config.rope.scaling
    match scaling.kind:
        case "default":
            return "none"
        case "linear":
            return f"linear, factor {scaling.factor:g}"
        case "factors":
            return "factors of the file"
        case "qwen":
            return f"dynamic NTK over {scaling.original_max_position_embeddings}"
        case kind:
            original = scaling.original_max_position_embeddings
            return f"{kind}, factor {scaling.factor:g} over {original}"


def _gguf_types(file: GgufFile) -> list[str]:
    """Types of the matrices, that of most elements first."""
    counts: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            counts[tensor.type_name] += prod(tensor.shape)
    return [name for name, _ in counts.most_common()]


def _describe_packed(packed: QuantizationConfig) -> str:
    group = "one group a row" if packed.group_size is None else f"group {packed.group_size}"
    text = f"{packed.method} {packed.bits} bit, {group}"
    return text + (", act-order" if packed.act_order else "")
