"""Qwen, the first version (7B, 14B, 1.8B, 72B): class QWenLMHeadModel. No torch.

Source: modeling_qwen.py and configuration_qwen.py beside the weights on the hub.
"""

from typing import Any

from engine.errors import CheckpointError
from engine.models.config import DecoderConfig
from engine.models.family import Family, rules
from engine.models.options import flag, number, positive_integer, require
from engine.models.rope import Rope, RopeScaling


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    require(config, "no_bias", (True,))
    require(config, "rotary_pct", (1.0, 1))
    require(config, "scale_attn_weights", (True,))
    require(config, "seq_length_expansion", (1,))
    hidden_size = positive_integer(config, "hidden_size")
    num_heads = positive_integer(config, "num_attention_heads")
    head_dim = positive_integer(config, "kv_channels", 128)
    if num_heads * head_dim != hidden_size:
        raise CheckpointError(
            f"{num_heads} heads of kv_channels {head_dim} are not hidden_size {hidden_size}."
        )
    seq_length = positive_integer(config, "seq_length")
    is_dynamic = flag(config, "use_dynamic_ntk", False)
    scaling = RopeScaling("qwen", original_max_position_embeddings=seq_length)
    return DecoderConfig(
        vocab_size=positive_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        # the config counts the gate and the other half together
        intermediate_size=positive_integer(config, "intermediate_size") // 2,
        num_layers=positive_integer(config, "num_hidden_layers", maximum=1024),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        rms_norm_eps=number(config, "layer_norm_epsilon"),
        rope=Rope(
            theta=number(config, "rotary_emb_base", 10000.0),
            rotary_dim=head_dim,
            scaling=scaling if is_dynamic else RopeScaling(),
        ),
        max_position_embeddings=max(
            seq_length, positive_integer(config, "max_position_embeddings", seq_length)
        ),
        qkv_bias=True,
        output_bias=False,
        tie_word_embeddings=flag(config, "tie_word_embeddings", False),
        logn_length=seq_length if flag(config, "use_logn_attn", False) else None,
    )


QWEN = Family(
    decoder_config=_decoder_config,
    hub_rules=rules(
        {
            "embedding.weight": "transformer.wte.weight",
            "norm.weight": "transformer.ln_f.weight",
            "head.weight": "lm_head.weight",
        },
        "transformer.h.{layer}",
        {
            "attention_norm": "ln_1",
            "qkv": "attn.c_attn",  # all of q, then k, then v
            "output": "attn.c_proj",
            "mlp_norm": "ln_2",
            "gate_up:gate": "mlp.w2",  # the activation is on w2, not on w1
            "gate_up:up": "mlp.w1",
            "down": "mlp.c_proj",
        },
    ),
    ignored_suffixes=("attn.masked_bias", "attn.bias"),
)
