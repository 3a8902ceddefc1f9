"""ChatGLM2 and ChatGLM3: class ChatGLMModel. No torch.

Source: modeling_chatglm.py beside the weights on the hub. RoPE turns the first half of each head
only, and pairs neighbours.
"""

from typing import Any

from engine.errors import CheckpointError
from engine.models.config import DecoderConfig
from engine.models.family import Family, rules
from engine.models.options import flag, number, positive_integer, require
from engine.models.rope import Rope, RopeScaling


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    require(config, "rmsnorm", (True,))
    require(config, "add_bias_linear", (False,))
    require(config, "post_layer_norm", (True,))
    require(config, "apply_residual_connection_post_layernorm", (False,))
    require(config, "original_rope", (True,))
    require(config, "quantization_bit", (0,))
    require(config, "pre_seq_len", (None,))
    num_heads = positive_integer(config, "num_attention_heads")
    grouped = flag(config, "multi_query_attention", False)
    num_kv_heads = positive_integer(config, "multi_query_group_num") if grouped else num_heads
    head_dim = positive_integer(config, "kv_channels")
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"num_attention_heads {num_heads} is not a multiple of multi_query_group_num "
            f"{num_kv_heads}."
        )
    return DecoderConfig(
        vocab_size=positive_integer(config, "padded_vocab_size"),
        hidden_size=positive_integer(config, "hidden_size"),
        intermediate_size=positive_integer(config, "ffn_hidden_size"),
        num_layers=positive_integer(config, "num_layers", maximum=1024),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number(config, "layernorm_epsilon"),
        rope=_rope(config, rotary_dim=head_dim // 2),
        max_position_embeddings=positive_integer(config, "seq_length"),
        qkv_bias=flag(config, "add_qkv_bias", False),
        output_bias=False,
        tie_word_embeddings=flag(config, "tie_word_embeddings", False),
        norm_scales_in_float32=True,
    )


def _rope(config: dict[str, Any], rotary_dim: int) -> Rope:
    """ChatGLM3-6B-32K multiplies the base by rope_ratio, ChatGLM2-6B-32K divides positions by it.

    Only the name says which, so a config without one is refused.
    """
    ratio = number(config, "rope_ratio", 1.0)
    name = str(config.get("_name_or_path")).lower()
    if ratio == 1.0 or "chatglm3" in name:
        return Rope(10000.0 * ratio, rotary_dim)
    if "chatglm2" in name:
        return Rope(10000.0, rotary_dim, RopeScaling("linear", factor=ratio))
    raise CheckpointError(
        f"rope_ratio = {ratio:g} means one thing in ChatGLM2 and another in ChatGLM3, and the "
        "model's config has neither in its _name_or_path."
    )


CHATGLM = Family(
    decoder_config=_decoder_config,
    hub_rules=rules(
        {
            "embedding.weight": "transformer.embedding.word_embeddings.weight",
            "norm.weight": "transformer.encoder.final_layernorm.weight",
            "head.weight": "transformer.output_layer.weight",
        },
        "transformer.encoder.layers.{layer}",
        {
            "attention_norm": "input_layernorm",
            "qkv": "self_attention.query_key_value",  # all of q, then k, then v
            "output": "self_attention.dense",
            "mlp_norm": "post_attention_layernorm",
            "gate_up": "mlp.dense_h_to_4h",  # the gate first
            "down": "mlp.dense_4h_to_h",
        },
    ),
    hub_pairs_neighbours=True,
    ignored_suffixes=("rotary_pos_emb.inv_freq",),
)
