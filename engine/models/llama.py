"""Llama and models of its architecture (SmolLM2, ...): class LlamaForCausalLM. No torch."""

from typing import Any

from engine.errors import CheckpointError
from engine.models.config import DecoderConfig, build_decoder_config, flag
from engine.models.family import GGUF_RULES, HUB_RULES, Family


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    if config.get("sliding_window") is not None:
        raise CheckpointError("The model uses sliding_window, which is not supported.")
    bias = flag(config, "attention_bias", False)
    return build_decoder_config(config, qkv_bias=bias, output_bias=bias)


LLAMA = Family(
    decoder_config=_decoder_config,
    hub_rules=HUB_RULES,
    gguf_rules=GGUF_RULES,
    gguf_permutes_qk=True,
)
