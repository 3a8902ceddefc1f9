"""Rotary position embedding as data: its options, read from a checkpoint's config. No torch.

The angles themselves are engine/layers/rotary.py.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import CheckpointError
from engine.models.options import flag, is_positive, number, positive_integer

Kind = Literal["default", "linear", "llama3", "factors", "yarn", "dynamic", "qwen"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies differ from the plain ones; `kind` says which fields count."""

    kind: Kind = "default"
    factor: float = 1.0  # linear, llama3, yarn, dynamic
    # llama3, yarn, dynamic, qwen: the context that the model was trained on
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    factors: tuple[float, ...] = ()  # factors: a divisor for each of rotary_dim / 2 frequencies
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the bounds of the ramp to whole frequencies
    attention_factor: float = 1.0  # yarn: of cosines and sines


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding (arXiv:2104.09864) of the first `rotary_dim` elements of each head.

    Pairs are always (i, i + rotary_dim / 2): where a family pairs neighbours, its rows of q and k
    are reordered when they are loaded.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling = RopeScaling()

    def theta_for(self, num_prompt_tokens: int) -> float:
        """The base of a sequence's angles, which dynamic kinds make a function of the prompt.

        It stays what it was while the sequence grows, as keys in the cache are not rotated again.
        """
        scaling, dim = self.scaling, self.rotary_dim
        original = scaling.original_max_position_embeddings
        if scaling.kind == "dynamic":  # transformers, modeling_rope_utils.py
            length = max(num_prompt_tokens, original)
            growth = scaling.factor * length / original - (scaling.factor - 1)
        elif scaling.kind == "qwen":  # modeling_qwen.py of Qwen-7B: get_ntk_alpha
            steps = math.ceil(math.log2(num_prompt_tokens / original) + 1)
            growth = max(2**steps - 1, 1)
        else:
            return self.theta
        return float(self.theta * growth ** (dim / (dim - 2)))

    def context(self, max_position_embeddings: int) -> int:
        """The longest sequence that makes sense, from the config's max_position_embeddings."""
        match self.scaling.kind:
            case "linear" | "dynamic":
                return int(max_position_embeddings * self.scaling.factor)
            case "yarn":
                stretched = self.scaling.original_max_position_embeddings * self.scaling.factor
                return max(max_position_embeddings, int(stretched))
            case _:
                return max_position_embeddings


def read_rope(config: dict[str, Any], head_dim: int) -> Rope:
    """From rope_theta, rope_scaling and partial_rotary_factor. Raises CheckpointError."""
    rotary_dim = int(head_dim * number(config, "partial_rotary_factor", 1.0))
    if rotary_dim < 2 or rotary_dim > head_dim or rotary_dim % 2:
        raise CheckpointError(f"partial_rotary_factor rotates {rotary_dim} of {head_dim} elements.")
    theta = number(config, "rope_theta", 10000.0)
    return Rope(theta, rotary_dim, _read_scaling(config, rotary_dim))


def override_scaling(rope: Rope, scaling: dict[str, Any], trained_context: int) -> Rope:
    """`rope` with another scaling, for a model trained on sequences of `trained_context` tokens.

    Raises CheckpointError.
    """
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in _OVERRIDES:
        raise CheckpointError(f"rope_type = {kind!r} is none of {', '.join(_OVERRIDES)}.")
    for key in scaling:
        if key not in ("rope_type", "type", *_OVERRIDES[kind]):
            raise CheckpointError(f"{key} is no key of rope_type {kind}.")
    config = {"rope_scaling": scaling, "max_position_embeddings": trained_context}
    theta = number(scaling, "rope_theta", rope.theta)
    return Rope(theta, rope.rotary_dim, _read_scaling(config, rope.rotary_dim))


# kinds that stretch a model which was not trained for them, and their keys
_OVERRIDES = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "dynamic": ("rope_theta", "factor", "original_max_position_embeddings"),
    "yarn": (
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}


def _read_scaling(config: dict[str, Any], rotary_dim: int) -> RopeScaling:
    scaling = config.get("rope_scaling")
    if scaling is None:
        return RopeScaling()
    if not isinstance(scaling, dict):
        raise CheckpointError("The model's config has a rope_scaling that is not an object.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    match kind:
        case "default":
            return RopeScaling()
        case "linear":
            return RopeScaling("linear", factor=number(scaling, "factor"))
        case "dynamic":
            factor = number(scaling, "factor")
            return RopeScaling("dynamic", factor, _original_length(config, scaling))
        case "llama3":
            return RopeScaling(
                "llama3",
                number(scaling, "factor"),
                positive_integer(scaling, "original_max_position_embeddings"),
                low_freq_factor=number(scaling, "low_freq_factor"),
                high_freq_factor=number(scaling, "high_freq_factor"),
            )
        case "yarn":
            return _read_yarn(config, scaling)
        case "factors":  # of a GGUF file
            return _read_factors(scaling, rotary_dim)
    raise CheckpointError(
        f"rope_scaling of type {kind!r} is not supported; linear, dynamic, llama3 and yarn are."
    )


def _original_length(config: dict[str, Any], scaling: dict[str, Any]) -> int:
    key = "original_max_position_embeddings"
    source = scaling if scaling.get(key) is not None else config
    return positive_integer(source, key if source is scaling else "max_position_embeddings")


def _read_yarn(config: dict[str, Any], scaling: dict[str, Any]) -> RopeScaling:
    """Defaults as in the YaRN paper (arXiv:2309.00071) and transformers' modeling_rope_utils.py."""
    factor = number(scaling, "factor")
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        scale, scale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if scale and scale_all:
            attention_factor = _magnitude(factor, scale) / _magnitude(factor, scale_all)
        else:
            attention_factor = _magnitude(factor)
    return RopeScaling(
        "yarn",
        factor,
        _original_length(config, scaling),
        beta_fast=number(scaling, "beta_fast", 32.0),
        beta_slow=number(scaling, "beta_slow", 1.0),
        truncate=flag(scaling, "truncate", True),
        attention_factor=number({"attention_factor": attention_factor}, "attention_factor"),
    )


def _magnitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _read_factors(scaling: dict[str, Any], rotary_dim: int) -> RopeScaling:
    factors = scaling.get("factors")
    if (
        not isinstance(factors, list)
        or len(factors) != rotary_dim // 2
        or not all(map(is_positive, factors))
    ):
        raise CheckpointError(f"rope_scaling's factors are not {rotary_dim // 2} positive numbers.")
    return RopeScaling("factors", factors=tuple(factors))
