"""Which model families there are, by the model_type of their config. No torch."""

from engine.errors import CheckpointError
from engine.models.family import Family
from engine.models.llama import LLAMA
from engine.models.qwen2 import QWEN2

FAMILIES: dict[str, Family] = {"llama": LLAMA, "qwen2": QWEN2}


def family(model_type: str) -> Family:
    """Raises CheckpointError, with the supported names, for a type that is not among them."""
    if model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            f"Models of type {model_type!r} are not supported; supported types are: {supported}."
        )
    return FAMILIES[model_type]
