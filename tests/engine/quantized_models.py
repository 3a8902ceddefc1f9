"""Tiny checkpoints in the layouts of GPTQ and AWQ, with codes drawn at random.

Packs word by word as the formats are described, and gives the transformers model that holds the
weights which those codes mean: w[k, n] = scale[group of k, n] * (code[k, n] - zero[group of k, n]).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from tests.engine import tiny_models

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds


@dataclass(frozen=True)
class Format:
    method: Literal["gptq", "gptq_v2", "awq"] = "gptq"
    bits: int = 4
    group_size: int = 32  # -1 = all columns
    symmetric: bool = True
    act_order: bool = False
    zero_biases: bool = False


def write(folder: Path, format: Format, model_type: str = "qwen2") -> Any:
    """Write a checkpoint; returns the model of transformers that it means."""
    options = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    if "moe" in model_type:
        options |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
    model = tiny_models.build(model_type, **options)
    generator = torch.Generator().manual_seed(1)
    tiny_models.write(model, folder)
    tensors: dict[str, torch.Tensor] = {}
    orders: dict[int, torch.Tensor] = {}
    dense = load_file(folder / "model.safetensors")
    for name, parameter in dense.items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj"):
            tensors[name] = parameter
            continue
        columns = parameter.shape[1]
        if columns not in orders:  # what has the same input has the same order
            orders[columns] = torch.randperm(columns, generator=generator)
        order = orders[columns] if format.act_order else None
        tensors |= _quantized(module, parameter, format, order, generator)
        if format.zero_biases and f"{module}.bias" not in dense:
            tensors[f"{module}.bias"] = torch.zeros(parameter.shape[0])
    save_file(dense, folder / "model.safetensors", {"format": "pt"})
    model = type(model).from_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    tiny_models.edit_config(folder, quantization_config=config_of(format))
    return model.eval()


def config_of(format: Format) -> dict[str, Any]:
    config: dict[str, Any] = {"bits": format.bits, "group_size": format.group_size}
    if format.method == "awq":
        return config | {"quant_method": "awq", "zero_point": True, "version": "gemm"}
    config |= {"quant_method": "gptq", "sym": format.symmetric, "desc_act": format.act_order}
    return config | ({"checkpoint_format": "gptq_v2"} if format.method == "gptq_v2" else {})


def _quantized(
    module: str,
    parameter: torch.Tensor,
    format: Format,
    order: torch.Tensor | None,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """The tensors of one module; `parameter` (N, K) becomes what they mean."""
    rows, columns = parameter.shape
    top = 2**format.bits
    group_size = columns if format.group_size == -1 else format.group_size
    groups = torch.arange(columns) // group_size
    if order is not None:
        groups = groups[order]
    shape = (columns // group_size, rows)
    codes = torch.randint(top, (columns, rows), generator=generator)
    zeros = torch.randint(top, shape, generator=generator)
    if format.symmetric and format.method != "awq":
        zeros = torch.full(shape, top // 2)
    scales = (torch.rand(shape, generator=generator) + 0.5).half() * (2 / top)
    parameter.copy_((scales.float()[groups] * (codes - zeros[groups])).T)
    tensors = {f"{module}.scales": scales}
    if format.method == "awq":
        tensors[f"{module}.qweight"] = _pack(codes, format.bits, AWQ_ORDER)
        tensors[f"{module}.qzeros"] = _pack(zeros, format.bits, AWQ_ORDER)
        return tensors
    stored = zeros if format.method == "gptq_v2" else (zeros - 1) % top
    plain = range(32 // format.bits)
    tensors[f"{module}.qweight"] = _pack(codes.T, format.bits, plain).T.contiguous()
    tensors[f"{module}.qzeros"] = _pack(stored, format.bits, plain)
    tensors[f"{module}.g_idx"] = groups.int()
    return tensors


def _pack(codes: torch.Tensor, bits: int, order: Any) -> torch.Tensor:
    """(r, c) -> (r, c * bits / 32) int32: field i of a word holds column order[i] of its group."""
    per_word = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // per_word, dtype=torch.int64)
    for word in range(words.shape[1]):
        for field, column in enumerate(order):
            words[:, word] |= codes[:, word * per_word + column] << (bits * field)
    return (words - (words >= 2**31) * 2**32).to(torch.int32)


def edit_quantization(folder: Path, **changes: Any) -> None:
    """Change keys of the quantization_config."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tiny_models.edit_config(folder, quantization_config=config | changes)
