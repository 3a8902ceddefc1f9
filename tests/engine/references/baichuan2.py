"""Baichuan2 7B (RoPE) and 13B (ALiBi) in plain float32, after modeling_baichuan.py of the hub."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.engine.references.common import angles, attend, heads, rms_norm, rotate_half

Weights = dict[str, torch.Tensor]


def slopes(num_heads: int) -> list[float]:
    """_get_interleave: the powers of the next smaller power of two, then every second one of the
    next larger, in this order.
    """

    def of_power_of_two(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(num_heads).is_integer():
        return of_power_of_two(num_heads)
    closest = 2 ** math.floor(math.log2(num_heads))
    return of_power_of_two(closest) + slopes(2 * closest)[0::2][: num_heads - closest]


def forward(weights: Weights, config: dict[str, Any], token_ids: list[int]) -> torch.Tensor:
    """Logits (length, vocab_size). Without max_position_embeddings it is the 13B kind."""
    length, num_heads = len(token_ids), config["num_attention_heads"]
    size, eps = config["hidden_size"], config["rms_norm_eps"]
    has_rope = "max_position_embeddings" in config
    theta = angles(length, size // num_heads, 10000.0)
    theta = torch.cat((theta, theta), dim=-1)
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    bias = torch.tensor(slopes(num_heads))[:, None, None] * distance

    def turn(x: torch.Tensor) -> torch.Tensor:
        return x * theta.cos() + rotate_half(x) * theta.sin()

    x = weights["model.embed_tokens.weight"][token_ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], eps)
        packed = y @ weights[f"{layer}.self_attn.W_pack.weight"].T
        q, k, v = (heads(part, num_heads) for part in torch.split(packed, size, dim=-1))
        y = attend(turn(q), turn(k), v) if has_rope else attend(q, k, v, bias)
        x = x + y @ weights[f"{layer}.self_attn.o_proj.weight"].T
        y = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
        gate = F.silu(y @ weights[f"{layer}.mlp.gate_proj.weight"].T)
        up = y @ weights[f"{layer}.mlp.up_proj.weight"].T
        x = x + (gate * up) @ weights[f"{layer}.mlp.down_proj.weight"].T
    x = rms_norm(x, weights["model.norm.weight"], eps)
    head = F.normalize(weights["lm_head.weight"])
    return x @ head.T
