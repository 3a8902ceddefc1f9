"""What a model family is: how its config is read and where its tensors go. No torch.

Source names are templates with {layer}. Targets are the decoder's parameter names
(engine/models/decoder.py); `part` names the rows of a fused parameter that a source fills.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from engine.models.config import DecoderConfig

Part = Literal["all", "q", "k", "v", "gate", "up"]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One source tensor (of each layer, where the name has {layer}) and where it goes."""

    source: str
    target: str
    part: Part = "all"


@dataclass(frozen=True, slots=True)
class Family:
    """One family of checkpoints that the decoder can run."""

    decoder_config: Callable[[dict[str, Any]], DecoderConfig]
    hub_rules: tuple[TensorRule, ...]
    gguf_rules: tuple[TensorRule, ...]
    # llama.cpp stores q and k of some families with the rows of each head reordered, so that its
    # interleaved RoPE equals the rotate-half RoPE that the checkpoint was trained with
    gguf_permutes_qk: bool


def _rules(names: dict[str, str], layer: dict[str, str]) -> tuple[TensorRule, ...]:
    """Pair targets with source names. A key of `layer` is "module" or "module:part"."""
    rules = [TensorRule(source, target) for target, source in names.items()]
    for key, source in layer.items():
        module, _, part = key.partition(":")
        for suffix in ("weight", "bias"):
            rules.append(
                TensorRule(
                    source=f"{source}.{suffix}",
                    target=f"layers.{{layer}}.{module}.{suffix}",
                    part=_PARTS[part],
                )
            )
    return tuple(rules)


_PARTS: dict[str, Part] = {"": "all", "q": "q", "k": "k", "v": "v", "gate": "gate", "up": "up"}

# Rules for parameters that a decoder lacks (norms have no bias, a tied head has no weight, ...) are
# skipped when weights are loaded.
HUB_RULES = _rules(
    {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    {
        "attention_norm": "model.layers.{layer}.input_layernorm",
        "qkv:q": "model.layers.{layer}.self_attn.q_proj",
        "qkv:k": "model.layers.{layer}.self_attn.k_proj",
        "qkv:v": "model.layers.{layer}.self_attn.v_proj",
        "output": "model.layers.{layer}.self_attn.o_proj",
        "mlp_norm": "model.layers.{layer}.post_attention_layernorm",
        "gate_up:gate": "model.layers.{layer}.mlp.gate_proj",
        "gate_up:up": "model.layers.{layer}.mlp.up_proj",
        "down": "model.layers.{layer}.mlp.down_proj",
    },
)
GGUF_RULES = _rules(
    {
        "embedding.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "head.weight": "output.weight",
    },
    {
        "attention_norm": "blk.{layer}.attn_norm",
        "qkv:q": "blk.{layer}.attn_q",
        "qkv:k": "blk.{layer}.attn_k",
        "qkv:v": "blk.{layer}.attn_v",
        "output": "blk.{layer}.attn_output",
        "mlp_norm": "blk.{layer}.ffn_norm",
        "gate_up:gate": "blk.{layer}.ffn_gate",
        "gate_up:up": "blk.{layer}.ffn_up",
        "down": "blk.{layer}.ffn_down",
    },
)
