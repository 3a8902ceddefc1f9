"""Baichuan and Baichuan2, 7B and 13B: class BaichuanForCausalLM. No torch.

Source: modeling_baichuan.py beside the weights on the hub. 7B and 13B share a class name; the
first has RoPE and the second ALiBi.
"""

from typing import Any

from engine.models.config import DecoderConfig, build_decoder_config
from engine.models.family import Family, rules
from engine.models.options import positive_integer

# Version 2 has this vocabulary, version 1 another; there is no key that says which one it is.
_VERSION_2_VOCAB_SIZE = 125696


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    options: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
    context = config.get("max_position_embeddings")
    if context is None:  # 13B
        context = positive_integer(config, "model_max_length")
        decoder = build_decoder_config(
            config | options | {"max_position_embeddings": context},
            qkv_bias=False,
            output_bias=False,
            rope=None,
            normalizes_head=_is_version_2(config),
        )
    else:
        decoder = build_decoder_config(
            config | options,
            qkv_bias=False,
            output_bias=False,
            normalizes_head=_is_version_2(config),
        )
    return decoder


def _is_version_2(config: dict[str, Any]) -> bool:
    return config.get("vocab_size") == _VERSION_2_VOCAB_SIZE


BAICHUAN = Family(
    decoder_config=_decoder_config,
    hub_rules=rules(
        {
            "embedding.weight": "model.embed_tokens.weight",
            "norm.weight": "model.norm.weight",
            "head.weight": "lm_head.weight",
        },
        "model.layers.{layer}",
        {
            "attention_norm": "input_layernorm",
            "qkv": "self_attn.W_pack",  # all of q, then k, then v
            "output": "self_attn.o_proj",
            "mlp_norm": "post_attention_layernorm",
            "gate_up:gate": "mlp.gate_proj",
            "gate_up:up": "mlp.up_proj",
            "down": "mlp.down_proj",
        },
    ),
    ignored_suffixes=("decoder.version",),
)
