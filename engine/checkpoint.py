"""A checkpoint on disk, described without torch: which files, which config, which tokenizer.

Read by the engine (weights) and by the server (tokenizer, chat template, defaults). Knows the two layouts: a folder as
the Hugging Face hub has it (config.json, *.safetensors, tokenizer.json, ...) and a single .gguf file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The tokenizer.ggml.* part of a GGUF file."""

    model: str  # "gpt2" = byte-level BPE
    pre: str  # pre-tokenizer name: "qwen2", "smollm", ...
    tokens: list[str]
    token_types: list[int]  # 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
    merges: list[str]
    bos_token_id: int | None
    eos_token_id: int | None
    add_bos_token: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model on disk. Nothing here is a tensor."""

    path: Path
    format: Literal["safetensors", "gguf"]
    config: dict[
        str, Any
    ]  # with the keys of a hub config.json, also for GGUF (model_type, hidden_size, ...)
    generation_config: dict[str, Any]  # generation_config.json, or {} where there is none
    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    tokenizer_json: str | None  # text of tokenizer.json; None for GGUF
    tokenizer_config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json, or {}
    gguf_vocabulary: GgufVocabulary | None = None

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Read everything but the weights. Raises CheckpointError with one clear sentence on anything missing or bad."""
        raise NotImplementedError
