"""How a checkpoint says that its weights are quantized. No torch."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.models.options import flag

_FILES = ("quantize_config.json", "quant_config.json")  # of writers older than the key in config


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """GPTQ (arXiv:2210.17323) or AWQ (arXiv:2306.00978), as their tools write them."""

    method: Literal["gptq", "awq"]
    bits: Literal[4, 8]
    group_size: int | None  # None = one group for each row
    # GPTQ: version 1 stores each zero point less one, version 2 as it is
    zeros_are_less_one: bool
    is_symmetric: bool  # every zero point is the middle code
    act_order: bool = False  # columns of a group need not be neighbours; told by g_idx


def read_quantization(checkpoint: Checkpoint) -> QuantizationConfig | None:
    """None for plain weights. Raises CheckpointError, by name, on what is not supported."""
    raw = _find(checkpoint)
    if raw is None:
        return None
    method = raw.get("quant_method", "awq" if raw.get("zero_point") is not None else "gptq")
    if method == "gptq":
        return _gptq(raw)
    if method == "awq":
        return _awq(raw)
    raise CheckpointError(
        f"The model is quantised by {method!r} (quantization_config), which is not supported; "
        "take its BF16, FP16, GPTQ or AWQ checkpoint or a GGUF file."
    )


def _find(checkpoint: Checkpoint) -> dict[str, Any] | None:
    raw = checkpoint.config.get("quantization_config")
    if raw is None and checkpoint.format != "gguf":
        for name in _FILES:
            file = checkpoint.path / name
            if file.exists():
                try:
                    raw = json.loads(file.read_text(encoding="utf-8"))
                except ValueError as exc:
                    raise CheckpointError(f"{file} is not valid JSON: {exc}.") from exc
                break
    if raw is not None and not isinstance(raw, dict):
        raise CheckpointError("The model's quantization_config is not an object.")
    return raw


def _gptq(raw: dict[str, Any]) -> QuantizationConfig:
    bits = _bits(raw, (4, 8))
    layout = raw.get("checkpoint_format") or "gptq"
    if raw.get("is_marlin_format") or layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(
            f"The GPTQ checkpoint_format {raw.get('checkpoint_format', 'marlin')!r} is not "
            "supported; 'gptq' and 'gptq_v2' are."
        )
    if raw.get("dynamic"):
        raise CheckpointError("GPTQ with options by module ('dynamic') is not supported.")
    if raw.get("pack_dtype", "int32") != "int32":
        raise CheckpointError(f"GPTQ with pack_dtype {raw['pack_dtype']!r} is not supported.")
    symmetric = flag(raw, "sym", False)
    act_order = flag(raw, "desc_act", False)
    return QuantizationConfig(
        "gptq", bits, _group_size(raw), layout == "gptq", symmetric, act_order
    )


def _awq(raw: dict[str, Any]) -> QuantizationConfig:
    version = str(raw.get("version", "gemm")).lower()
    if version != "gemm":
        raise CheckpointError(f"The AWQ version {version!r} is not supported; 'gemm' is.")
    flag(raw, "zero_point", True)
    return QuantizationConfig("awq", _bits(raw, (4,)), _group_size(raw), False, False)


def _bits(raw: dict[str, Any], supported: tuple[int, ...]) -> Literal[4, 8]:
    bits = raw.get("bits", raw.get("w_bit"))
    if bits not in supported:
        raise CheckpointError(
            f"The model is quantised to {bits!r} bits; supported are {supported}."
        )
    return 4 if bits == 4 else 8


def _group_size(raw: dict[str, Any]) -> int | None:
    size = raw.get("group_size", raw.get("q_group_size", -1))
    if type(size) is not int or size < -1 or size == 0:
        raise CheckpointError(f"The model's quantization_config has group_size = {size!r}.")
    return None if size == -1 else size
