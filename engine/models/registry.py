"""Which model families there are, by the model_type of their config. No torch."""

from engine.errors import CheckpointError
from engine.models.baichuan import BAICHUAN
from engine.models.chatglm import CHATGLM
from engine.models.family import Family
from engine.models.llama import LLAMA
from engine.models.mistral import MISTRAL
from engine.models.qwen import QWEN
from engine.models.qwen2 import QWEN2, QWEN2_MOE
from engine.models.qwen3 import QWEN3, QWEN3_MOE

FAMILIES: dict[str, Family] = {
    "baichuan": BAICHUAN,
    "chatglm": CHATGLM,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen": QWEN,
    "qwen2": QWEN2,
    "qwen2_moe": QWEN2_MOE,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
}


def family(model_type: str) -> Family:
    """Raises CheckpointError, with the supported names, for a type that is not among them."""
    return _find(model_type, FAMILIES, "Models")


def gguf_family(architecture: str) -> Family:
    """The same for the architecture of a GGUF file."""
    return _find(architecture, {k: v for k, v in FAMILIES.items() if v.gguf_rules}, "GGUF files")


def _find(model_type: str, families: dict[str, Family], what: str) -> Family:
    if model_type not in families:
        supported = ", ".join(sorted(families))
        raise CheckpointError(
            f"{what} of type {model_type!r} are not supported; supported types are: {supported}."
        )
    return families[model_type]
