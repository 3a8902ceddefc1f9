"""What a model family is: how its config is read and where its tensors go. No torch.

Source names are templates with {layer} and {expert}. Targets are the decoder's parameter names
(engine/models/decoder.py); `part` names the rows of a fused parameter that a source fills.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from engine.models.config import DecoderConfig

Part = Literal["all", "q", "k", "v", "gate", "up"]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One source tensor (of each layer and expert that the name has) and where it goes."""

    source: str
    target: str
    part: Part = "all"


@dataclass(frozen=True, slots=True)
class Family:
    """One family of checkpoints that the decoder can run."""

    decoder_config: Callable[[dict[str, Any]], DecoderConfig]
    hub_rules: tuple[TensorRule, ...]
    gguf_rules: tuple[TensorRule, ...] = ()  # none: its GGUF files are not supported
    # The rotated rows of q and k are in the order that pairs neighbours. llama.cpp reorders those
    # of some families so, and ChatGLM was trained so.
    hub_pairs_neighbours: bool = False
    gguf_pairs_neighbours: bool = False
    ignored_suffixes: tuple[str, ...] = ()  # of tensors that some files have and nobody needs


_PARTS: dict[str, Part] = {"": "all", "q": "q", "k": "k", "v": "v", "gate": "gate", "up": "up"}


def rules(names: dict[str, str], layer: str, modules: dict[str, str]) -> tuple[TensorRule, ...]:
    """Pair targets with source names: `names` whole, `modules` of each layer, below `layer`.

    A key of `modules` is "module" or "module:part". Rules for parameters that a decoder lacks
    (norms have no bias, a tied head has no weight, ...) are skipped when weights are loaded.
    """
    pairs = [TensorRule(source, target) for target, source in names.items()]
    for key, source in modules.items():
        module, _, part = key.partition(":")
        for suffix in ("weight", "bias"):
            pairs.append(
                TensorRule(
                    source=f"{layer}.{source}.{suffix}",
                    target=f"layers.{{layer}}.{module}.{suffix}",
                    part=_PARTS[part],
                )
            )
    return tuple(pairs)


_HUB_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_HUB_MODULES = {
    "attention_norm": "input_layernorm",
    "qkv:q": "self_attn.q_proj",
    "qkv:k": "self_attn.k_proj",
    "qkv:v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate_up:gate": "mlp.gate_proj",
    "gate_up:up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_HUB_EXPERTS = {
    "router": "mlp.gate",
    "experts.{expert}.gate_up:gate": "mlp.experts.{expert}.gate_proj",
    "experts.{expert}.gate_up:up": "mlp.experts.{expert}.up_proj",
    "experts.{expert}.down": "mlp.experts.{expert}.down_proj",
    "shared.gate_up:gate": "mlp.shared_expert.gate_proj",
    "shared.gate_up:up": "mlp.shared_expert.up_proj",
    "shared.down": "mlp.shared_expert.down_proj",
    "shared_gate": "mlp.shared_expert_gate",
}
HUB_RULES = rules(_HUB_NAMES, "model.layers.{layer}", _HUB_MODULES)
HUB_MOE_RULES = rules(_HUB_NAMES, "model.layers.{layer}", _HUB_MODULES | _HUB_EXPERTS)
GGUF_RULES = rules(
    {
        "embedding.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "head.weight": "output.weight",
    },
    "blk.{layer}",
    {
        "attention_norm": "attn_norm",
        "qkv:q": "attn_q",
        "qkv:k": "attn_k",
        "qkv:v": "attn_v",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "output": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate_up:gate": "ffn_gate",
        "gate_up:up": "ffn_up",
        "down": "ffn_down",
    },
)
