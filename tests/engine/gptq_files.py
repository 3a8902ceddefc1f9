"""What a GPTQ folder means, read field by field from its files: nothing of the engine's reader."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


def tensors_of(folder: Path) -> Weights:
    """All tensors of all shards, as they are."""
    tensors: Weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def dequantized(folder: Path) -> Weights:
    """Every weight under its plain name, in float32: scale * (code - zero)."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "gptq"
    bits, added = config["bits"], {"gptq": 1, "gptq_v2": 0}[config["checkpoint_format"]]
    tensors = tensors_of(folder)
    weights: Weights = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        if suffix == "qweight":
            codes = fields(tensor, bits).transpose(1, 2).flatten(0, 1)  # (K, N)
            zeros = fields(tensors[f"{module}.qzeros"], bits).flatten(1) + added  # (G, N)
            groups = tensors[f"{module}.g_idx"].long()
            scales = tensors[f"{module}.scales"].float()
            weights[f"{module}.weight"] = (scales[groups] * (codes - zeros[groups])).T.contiguous()
        elif suffix not in ("qzeros", "g_idx", "scales"):
            weights[name] = tensor.float()
    return weights


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(r, c) int32 -> (r, c, 32 / bits), the lowest bits first."""
    unsigned = words.long() % 2**32
    return torch.stack([unsigned >> i & (2**bits - 1) for i in range(0, 32, bits)], dim=-1)
