"""Qwen-7B and its kin in plain float32, after modeling_qwen.py of the hub: for comparison only."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.engine.references.common import angles, attend, heads, rms_norm, rotate_half

Weights = dict[str, torch.Tensor]


def ntk_alpha(length: int, seq_length: int) -> float:
    """get_ntk_alpha of QWenModel: 1 up to the training length, then 3, 7, 15 ... by doublings."""
    context_value = math.log(length / seq_length, 2) + 1
    alpha = 2 ** math.ceil(context_value) - 1
    return float(max(alpha, 1))


def ntk_base(base: float, alpha: float, dim: int) -> float:
    return float(base * alpha ** (dim / (dim - 2)))


def logn(length: int, seq_length: int) -> torch.Tensor:
    """Of positions 1 to `length`."""
    values = [math.log(i, seq_length) if i > seq_length else 1.0 for i in range(1, length + 1)]
    return torch.tensor(values)


def forward(
    weights: Weights, config: dict[str, Any], token_ids: list[int], num_prompt_tokens: int
) -> torch.Tensor:
    """Logits (length, vocab_size), the angles being those of a prompt of so many tokens."""
    length, num_heads = len(token_ids), config["num_attention_heads"]
    dim, eps, seq_length = config["kv_channels"], config["layer_norm_epsilon"], config["seq_length"]
    alpha = ntk_alpha(num_prompt_tokens, seq_length) if config["use_dynamic_ntk"] else 1.0
    theta = angles(length, dim, ntk_base(config["rotary_emb_base"], alpha, dim))
    theta = torch.cat((theta, theta), dim=-1)

    def turn(x: torch.Tensor) -> torch.Tensor:
        return x * theta.cos() + rotate_half(x) * theta.sin()

    x = weights["transformer.wte.weight"][token_ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"transformer.h.{i}"
        y = rms_norm(x, weights[f"{layer}.ln_1.weight"], eps)
        qkv = y @ weights[f"{layer}.attn.c_attn.weight"].T + weights[f"{layer}.attn.c_attn.bias"]
        q, k, v = (heads(part, num_heads) for part in qkv.chunk(3, dim=-1))
        q, k = turn(q), turn(k)
        if config["use_logn_attn"]:
            q = q * logn(length, seq_length)[None, :, None]
        x = x + attend(q, k, v) @ weights[f"{layer}.attn.c_proj.weight"].T
        y = rms_norm(x, weights[f"{layer}.ln_2.weight"], eps)
        a1 = y @ weights[f"{layer}.mlp.w1.weight"].T
        a2 = y @ weights[f"{layer}.mlp.w2.weight"].T
        x = x + (a1 * F.silu(a2)) @ weights[f"{layer}.mlp.c_proj.weight"].T
    x = rms_norm(x, weights["transformer.ln_f.weight"], eps)
    return x @ weights["lm_head.weight"].T
