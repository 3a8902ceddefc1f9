"""Llama and models of its architecture (SmolLM2, ...): class LlamaForCausalLM. No torch."""

from typing import Any

from engine.models.config import DecoderConfig, build_decoder_config
from engine.models.family import GGUF_RULES, HUB_RULES, Family
from engine.models.options import flag, require


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    require(config, "sliding_window", (None,))
    bias = flag(config, "attention_bias", False)
    return build_decoder_config(config, qkv_bias=bias, output_bias=bias)


LLAMA = Family(
    decoder_config=_decoder_config,
    hub_rules=HUB_RULES,
    gguf_rules=GGUF_RULES,
    gguf_pairs_neighbours=True,
)
