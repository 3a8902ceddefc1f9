"""Qwen1.5, Qwen2 and Qwen2.5: class Qwen2ForCausalLM. No torch."""

from typing import Any

from engine.errors import CheckpointError
from engine.models.config import DecoderConfig, build_decoder_config, flag, positive_integer
from engine.models.family import GGUF_RULES, HUB_RULES, Family


def _decoder_config(config: dict[str, Any]) -> DecoderConfig:
    _refuse_sliding_window(config)
    # q, k and v always have a bias and the output projection never has; there is no key for it.
    return build_decoder_config(config, qkv_bias=True, output_bias=False)


def _refuse_sliding_window(config: dict[str, Any]) -> None:
    """sliding_window itself is set in every config; use_sliding_window says whether it counts."""
    used = "sliding_attention" in (config.get("layer_types") or ())
    if flag(config, "use_sliding_window", False) and "layer_types" not in config:
        num_layers = positive_integer(config, "num_hidden_layers")
        used = positive_integer(config, "max_window_layers", 28) < num_layers
    if used:
        raise CheckpointError("The model uses sliding_window, which is not supported.")


QWEN2 = Family(
    decoder_config=_decoder_config,
    hub_rules=HUB_RULES,
    gguf_rules=GGUF_RULES,
    gguf_permutes_qk=False,
)
