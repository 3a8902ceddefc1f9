"""Typed look-ups in a checkpoint's config: a missing or impossible value becomes a CheckpointError
that names the key. No torch.
"""

from typing import Any

from engine.errors import CheckpointError


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
    if not is_positive(value):
        raise CheckpointError(f"The model's config has {key} = {value!r}, not a positive number.")
    return float(value)


def is_positive(value: Any) -> bool:
    """Whether it is a finite positive number."""
    return type(value) in (int, float) and 0 < value < float("inf")


def flag(config: dict[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not bool:
        raise CheckpointError(f"The model's config has {key} = {value!r}, not true or false.")
    return value


def layer_indices(config: dict[str, Any], key: str, num_layers: int) -> frozenset[int]:
    """A list of layers; none where the key is absent."""
    value = config.get(key) or []
    if not isinstance(value, list) or not all(
        type(layer) is int and 0 <= layer < num_layers for layer in value
    ):
        raise CheckpointError(f"The model's config has {key} = {value!r}, not a list of layers.")
    return frozenset(value)


def require(config: dict[str, Any], key: str, supported: tuple[Any, ...]) -> None:
    """Refuse any value that is not in `supported`; an absent one means the first of them."""
    value = config.get(key)
    if (supported[0] if value is None else value) not in supported:
        raise CheckpointError(
            f"The model's config has {key} = {value!r}; only {supported[0]!r} is supported."
        )
