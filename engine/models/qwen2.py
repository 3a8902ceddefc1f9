"""Qwen1.5, Qwen2 and Qwen2.5: classes Qwen2ForCausalLM and Qwen2MoeForCausalLM. No torch."""

from typing import Any

from engine.models.config import (
    DecoderConfig,
    build_decoder_config,
    read_moe,
    read_sliding_window,
)
from engine.models.family import GGUF_RULES, HUB_MOE_RULES, HUB_RULES, Family
from engine.models.options import flag


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    # q, k and v always have a bias and the output projection never has; there is no key for it.
    return build_decoder_config(
        config, qkv_bias=True, output_bias=False, **read_sliding_window(config)
    )


def _moe_decoder_config(config: dict[str, Any]) -> DecoderConfig:
    return build_decoder_config(
        config,
        qkv_bias=flag(config, "qkv_bias", True),
        output_bias=False,
        moe=read_moe(config, shared=True),
        **read_sliding_window(config),
    )


QWEN2 = Family(decoder_config=_decoder_config, hub_rules=HUB_RULES, gguf_rules=GGUF_RULES)
QWEN2_MOE = Family(decoder_config=_moe_decoder_config, hub_rules=HUB_MOE_RULES)
