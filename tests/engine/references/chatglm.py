"""ChatGLM2-6B and ChatGLM3-6B in plain float32, after modeling_chatglm.py of the hub."""

from typing import Any

import torch
import torch.nn.functional as F

from tests.engine.references.common import angles, attend, heads, rms_norm

Weights = dict[str, torch.Tensor]


def turn(x: torch.Tensor, base: float, step: float) -> torch.Tensor:
    """apply_rotary_pos_emb: neighbours (2i, 2i + 1) of the first half of each head.

    `step` lies between one position and the next.
    """
    rotary_dim = x.shape[-1] // 2
    theta = angles(x.shape[1], rotary_dim, base) * step
    turned = x.clone()
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    turned[..., 0:rotary_dim:2] = even * theta.cos() - odd * theta.sin()
    turned[..., 1:rotary_dim:2] = odd * theta.cos() + even * theta.sin()
    return turned


def forward(weights: Weights, config: dict[str, Any], token_ids: list[int]) -> torch.Tensor:
    """Logits (length, padded_vocab_size)."""
    num_heads, dim = config["num_attention_heads"], config["kv_channels"]
    num_groups, eps = config["multi_query_group_num"], config["layernorm_epsilon"]
    ratio = config.get("rope_ratio", 1)
    is_second = "chatglm2" in config["_name_or_path"]
    base, step = (10000.0, 1 / ratio) if is_second else (10000.0 * ratio, 1.0)
    sizes = [num_heads * dim, num_groups * dim, num_groups * dim]
    x = weights["transformer.embedding.word_embeddings.weight"][token_ids]
    for i in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{i}"
        y = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], eps)
        name = f"{layer}.self_attention.query_key_value"
        qkv = y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        q, k, v = torch.split(qkv, sizes, dim=-1)
        share = num_heads // num_groups
        keys = turn(heads(k, num_groups), base, step).repeat_interleave(share, dim=0)
        values = heads(v, num_groups).repeat_interleave(share, dim=0)
        y = attend(turn(heads(q, num_heads), base, step), keys, values)
        x = x + y @ weights[f"{layer}.self_attention.dense.weight"].T
        y = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
        gate, up = (y @ weights[f"{layer}.mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ weights[f"{layer}.mlp.dense_4h_to_h.weight"].T
    x = rms_norm(x, weights["transformer.encoder.final_layernorm.weight"], eps)
    return x @ weights["transformer.output_layer.weight"].T
