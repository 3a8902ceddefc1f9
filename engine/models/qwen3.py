"""Qwen3: classes Qwen3ForCausalLM and Qwen3MoeForCausalLM. No torch."""

from typing import Any

from engine.models.config import (
    DecoderConfig,
    build_decoder_config,
    read_moe,
    read_sliding_window,
)
from engine.models.family import GGUF_RULES, HUB_MOE_RULES, HUB_RULES, Family
from engine.models.options import flag, positive_integer


def _decoder_config(config: dict[str, Any], **options: Any) -> DecoderConfig:
    positive_integer(config, "head_dim")  # not the quotient in most sizes
    bias = flag(config, "attention_bias", False)
    return build_decoder_config(
        config,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        **read_sliding_window(config),
        **options,
    )


def _moe_decoder_config(config: dict[str, Any]) -> DecoderConfig:
    return _decoder_config(config, moe=read_moe(config, shared=False))


QWEN3 = Family(decoder_config=_decoder_config, hub_rules=HUB_RULES, gguf_rules=GGUF_RULES)
QWEN3_MOE = Family(decoder_config=_moe_decoder_config, hub_rules=HUB_MOE_RULES)
