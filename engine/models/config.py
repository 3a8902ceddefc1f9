"""What a decoder is, as data: every size and option that engine/models/decoder.py needs. No torch.

The family files build it from a checkpoint's config with the helpers here, which turn a missing or
impossible value into a CheckpointError that names the key.
"""

from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies differ from the plain ones; `kind` says which fields count."""

    kind: Literal["default", "linear", "llama3", "factors"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_max_position_embeddings: int = 8192  # llama3
    factors: tuple[float, ...] = ()  # factors: a divisor for each of rotary_dim / 2 frequencies


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of one decoder-only transformer with RMSNorm, RoPE, GQA and SwiGLU."""

    vocab_size: int  # rows of the embedding and of the output head
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # never derived: num_heads * head_dim may differ from hidden_size
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    rotary_dim: int  # the first so many elements of a head are rotated
    max_position_embeddings: int
    qkv_bias: bool
    output_bias: bool  # of the attention's output projection
    tie_word_embeddings: bool


def build_decoder_config(
    config: dict[str, Any], *, qkv_bias: bool, output_bias: bool
) -> DecoderConfig:
    """Read the keys that llama and its descendants share. Raises CheckpointError naming the key."""
    _refuse_quantization(config.get("quantization_config"))
    _refuse(config, "hidden_act", ("silu", "swish"), default="silu")
    _refuse(config, "mlp_bias", (False,), default=False)
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
    rotary_dim = int(head_dim * number(config, "partial_rotary_factor", 1.0))
    if rotary_dim < 2 or rotary_dim > head_dim or rotary_dim % 2:
        raise CheckpointError(f"partial_rotary_factor rotates {rotary_dim} of {head_dim} elements.")
    return DecoderConfig(
        vocab_size=positive_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=positive_integer(config, "intermediate_size"),
        num_layers=positive_integer(config, "num_hidden_layers", maximum=1024),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number(config, "rms_norm_eps"),
        rope_theta=number(config, "rope_theta", 10000.0),
        rope_scaling=_rope_scaling(config, rotary_dim),
        rotary_dim=rotary_dim,
        max_position_embeddings=positive_integer(config, "max_position_embeddings"),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        tie_word_embeddings=flag(config, "tie_word_embeddings", False),
    )


def positive_integer(
    config: dict[str, Any], key: str, default: int | None = None, maximum: int = 2**24
) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 1 <= value <= maximum:
        raise CheckpointError(
            f"The model's config has {key} = {value!r}, not an integer between 1 and {maximum}."
        )
    return value


def number(config: dict[str, Any], key: str, default: float | None = None) -> float:
    value: Any = config.get(key)
    if value is None:
        value = default
    if not _is_positive(value):
        raise CheckpointError(f"The model's config has {key} = {value!r}, not a positive number.")
    return float(value)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def flag(config: dict[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not bool:
        raise CheckpointError(f"The model's config has {key} = {value!r}, not true or false.")
    return value


def _refuse(config: dict[str, Any], key: str, supported: tuple[Any, ...], default: Any) -> None:
    value = config.get(key)
    if (default if value is None else value) not in supported:
        raise CheckpointError(
            f"The model's config has {key} = {value!r}; only {supported[0]!r} is supported."
        )


def _refuse_quantization(quantization: Any) -> None:
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    raise CheckpointError(
        f"The model is quantised by {method!r} (quantization_config), which is not supported; take "
        "its BF16 or FP16 checkpoint or a GGUF file."
    )


def _rope_scaling(config: dict[str, Any], rotary_dim: int) -> RopeScaling:
    scaling = config.get("rope_scaling")
    if scaling is None:
        return RopeScaling()
    if not isinstance(scaling, dict):
        raise CheckpointError("The model's config has a rope_scaling that is not an object.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor=number(scaling, "factor"))
    if kind == "llama3":
        original = "original_max_position_embeddings"
        return RopeScaling(
            "llama3",
            factor=number(scaling, "factor"),
            low_freq_factor=number(scaling, "low_freq_factor"),
            high_freq_factor=number(scaling, "high_freq_factor"),
            original_max_position_embeddings=positive_integer(scaling, original),
        )
    if kind == "factors":
        factors = scaling.get("factors")
        if (
            not isinstance(factors, list)
            or len(factors) != rotary_dim // 2
            or not all(map(_is_positive, factors))
        ):
            raise CheckpointError(
                f"rope_scaling's factors are not {rotary_dim // 2} positive numbers."
            )
        return RopeScaling("factors", factors=tuple(factors))
    raise CheckpointError(f"rope_scaling of type {kind!r} is not supported; linear and llama3 are.")
