"""Mistral: llama with a sliding window in every layer, class MistralForCausalLM. No torch.

Its GGUF files say that they are llama.
"""

from typing import Any

from engine.models.config import DecoderConfig, build_decoder_config
from engine.models.family import HUB_RULES, Family
from engine.models.options import positive_integer


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    window = config.get("sliding_window")
    return build_decoder_config(
        config,
        qkv_bias=False,
        output_bias=False,
        sliding_window=None if window is None else positive_integer(config, "sliding_window"),
    )


MISTRAL = Family(decoder_config=_decoder_config, hub_rules=HUB_RULES)
