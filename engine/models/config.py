"""What a decoder is, as data: every size and option that engine/models/decoder.py needs. No torch.

The family files build it from a checkpoint's config, mostly with `build_decoder_config`, which
reads the keys that llama and its descendants share.
"""

from dataclasses import dataclass, replace
from typing import Any

from engine.errors import CheckpointError, ConfigError
from engine.models.options import (
    flag,
    layer_indices,
    number,
    positive_integer,
    require,
)
from engine.models.rope import Rope, RopeScaling, override_scaling, read_rope


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Sparse feed-forward layers: a router picks some experts, each a SwiGLU network, per token."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int  # of one expert
    shared_intermediate_size: int  # of the expert that every token takes; 0 = there is none
    renormalizes: bool  # the weights of the chosen experts add up to 1
    dense_layers: frozenset[int]  # layers with a plain network instead


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of one decoder-only transformer with RMSNorm, grouped-query attention and SwiGLU.

    Positions come from `rope`, or without it from ALiBi.
    """

    vocab_size: int  # rows of the embedding and of the output head
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # never derived: num_heads * head_dim may differ from hidden_size
    rms_norm_eps: float
    rope: Rope | None  # None = ALiBi (arXiv:2108.12409)
    max_position_embeddings: int
    qkv_bias: bool
    output_bias: bool  # of the attention's output projection
    tie_word_embeddings: bool
    qk_norm: bool = False  # RMSNorm of each head of q and k, before RoPE
    # queries past this position are scaled by log(position) / log(this); None = never
    logn_length: int | None = None
    sliding_window: int | None = None  # tokens that a query sees, itself included
    full_attention_layers: frozenset[int] = frozenset()  # which have no window
    moe: MixtureOfExperts | None = None
    norm_scales_in_float32: bool = False  # RMSNorm's weight is applied before the cast back
    normalizes_head: bool = False  # rows of the output head are L2-normalised when loaded

    @property
    def trained_context(self) -> int:
        """The longest sequence that the model was trained on, as far as its config says."""
        scaling = RopeScaling() if self.rope is None else self.rope.scaling
        if scaling.kind in ("yarn", "dynamic", "qwen"):
            return scaling.original_max_position_embeddings
        if scaling.kind == "linear":
            return int(self.max_position_embeddings / scaling.factor)
        return self.max_position_embeddings

    def with_rope_scaling(self, scaling: dict[str, Any]) -> "DecoderConfig":
        """The same model stretched by another scaling of its positions, in the hub's spelling.

        Raises ConfigError where it cannot be.
        """
        if self.rope is None:
            raise ConfigError("--rope-scaling: the model has ALiBi and no rotary embedding.")
        try:
            rope = override_scaling(self.rope, scaling, self.trained_context)
        except CheckpointError as exc:
            reason = str(exc).removeprefix("The model's config has ")
            raise ConfigError(f"--rope-scaling: {reason}") from exc
        context = rope.context(self.trained_context)
        return replace(self, rope=rope, max_position_embeddings=context)

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees; None = all before it."""
        return None if layer in self.full_attention_layers else self.sliding_window

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer's feed-forward network is a mixture of experts."""
        return self.moe is not None and layer not in self.moe.dense_layers

    def rope_theta(self, num_prompt_tokens: int) -> float:
        """What the cache of a sequence depends on beside its tokens; see Rope.theta_for."""
        return 0.0 if self.rope is None else self.rope.theta_for(num_prompt_tokens)


def build_decoder_config(config: dict[str, Any], **options: Any) -> DecoderConfig:
    """Read the keys that llama and its descendants share; `options` are fields that win.

    Raises CheckpointError naming the key.
    """
    require(config, "hidden_act", ("silu", "swish"))
    require(config, "mlp_bias", (False,))
    hidden_size = positive_integer(config, "hidden_size")
    num_heads = positive_integer(config, "num_attention_heads")
    num_kv_heads = positive_integer(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads "
            f"{num_kv_heads}."
        )
    # Hub configs of these families leave head_dim out exactly where it is this quotient.
    head_dim = positive_integer(config, "head_dim", hidden_size // num_heads)
    rope = read_rope(config, head_dim)
    values: dict[str, Any] = {
        "vocab_size": positive_integer(config, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": positive_integer(config, "intermediate_size"),
        "num_layers": positive_integer(config, "num_hidden_layers", maximum=1024),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": number(config, "rms_norm_eps"),
        "rope": rope,
        "max_position_embeddings": rope.context(
            positive_integer(config, "max_position_embeddings")
        ),
        "tie_word_embeddings": flag(config, "tie_word_embeddings", False),
    }
    return DecoderConfig(**values | options)


def read_sliding_window(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config with the keys of Qwen2: sliding_window is set in every one, and
    use_sliding_window or layer_types says whether it counts.
    """
    num_layers = positive_integer(config, "num_hidden_layers", maximum=1024)
    types = config.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != num_layers or set(types) - set(known):
            raise CheckpointError(
                f"layer_types is not a list of {num_layers} kinds out of {known}."
            )
        full = frozenset(i for i, kind in enumerate(types) if kind == "full_attention")
    elif flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None:
        full = frozenset(range(min(num_layers, positive_integer(config, "max_window_layers", 28))))
    else:
        return {}
    if len(full) == num_layers:
        return {}
    window = positive_integer(config, "sliding_window")
    return {"sliding_window": window, "full_attention_layers": full}


def read_moe(config: dict[str, Any], *, shared: bool) -> MixtureOfExperts:
    """The keys of Qwen2-MoE and Qwen3-MoE; `shared` says whether the family has a shared expert."""
    num_layers = positive_integer(config, "num_hidden_layers", maximum=1024)
    # transformers 5 writes Qwen3-MoE's with the second name
    key = "num_local_experts" if config.get("num_experts") is None else "num_experts"
    num_experts = positive_integer(config, key)
    step = positive_integer(config, "decoder_sparse_step", 1)
    dense = layer_indices(config, "mlp_only_layers", num_layers)
    return MixtureOfExperts(
        num_experts=num_experts,
        num_experts_per_token=positive_integer(config, "num_experts_per_tok", maximum=num_experts),
        intermediate_size=positive_integer(config, "moe_intermediate_size"),
        shared_intermediate_size=(
            positive_integer(config, "shared_expert_intermediate_size") if shared else 0
        ),
        renormalizes=flag(config, "norm_topk_prob", False),
        dense_layers=dense | {i for i in range(num_layers) if (i + 1) % step},
    )
