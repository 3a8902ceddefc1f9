"""A checkpoint on disk, described without torch: which files, which config, which tokenizer.

Read by the engine (weights) and by the server (tokenizer, chat template, defaults). Knows the two
layouts: a folder as the Hugging Face hub has it (config.json, *.safetensors, tokenizer.json, ...)
and a single .gguf file.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine import gguf_config
from engine.errors import CheckpointError
from engine.gguf import GgufFile
from engine.models import registry
from engine.stop_tokens import stop_token_ids
from engine.tokenizer_files import TokenizerFiles, read_tokenizer_files


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
    # with the keys of a hub config.json, also for GGUF (model_type, hidden_size, ...)
    config: dict[str, Any]
    generation_config: dict[str, Any]  # generation_config.json, or {} where there is none
    eos_token_ids: tuple[int, ...]  # every token that ends a turn, the declared ones first
    chat_template: str | None
    tokenizer_json: str | None  # text of tokenizer.json; None for GGUF and tokenizer_files
    tokenizer_config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json, or {}
    gguf_vocabulary: GgufVocabulary | None = None
    tokenizer_files: TokenizerFiles | None = None  # where a folder has no tokenizer.json

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Read everything but the weights.

        The config has one spelling whatever the file's: rope_theta and rope_scaling rather than
        rope_parameters, dtype rather than torch_dtype. Raises CheckpointError with one clear
        sentence on anything missing, broken or of an unsupported kind.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            return _open_folder(path)
        if not path.exists():
            raise CheckpointError(f"There is no model at {path}.")
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path} is neither a folder nor a .gguf file.")
        return _open_gguf(path)


def _open_gguf(path: Path) -> Checkpoint:
    file = GgufFile.open(path)
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            f"{path} is one part of a model that is split into several .gguf files; join them "
            "first with llama.cpp's llama-gguf-split --merge."
        )
    metadata = gguf_config.Metadata(file)
    registry.gguf_family(metadata.architecture)
    vocabulary = _gguf_vocabulary(metadata)
    template = "tokenizer.chat_template"
    return Checkpoint(
        path=path,
        format="gguf",
        config=gguf_config.hub_config(file, metadata),
        generation_config={},
        eos_token_ids=gguf_config.eos_token_ids(
            metadata, vocabulary.tokens, vocabulary.token_types
        ),
        chat_template=metadata.text(template) if metadata.has(template) else None,
        tokenizer_json=None,
        gguf_vocabulary=vocabulary,
    )


def _gguf_vocabulary(metadata: gguf_config.Metadata) -> GgufVocabulary:
    prefix = "tokenizer.ggml."
    model = metadata.text(prefix + "model")
    pre = metadata.text(prefix + "pre") if metadata.has(prefix + "pre") else "default"
    tokens = metadata.strings(prefix + "tokens")
    return GgufVocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        token_types=gguf_config.token_types(metadata, len(tokens)),
        merges=metadata.strings(prefix + "merges") if metadata.has(prefix + "merges") else [],
        bos_token_id=metadata.token_id(prefix + "bos_token_id", len(tokens)),
        eos_token_id=metadata.token_id(prefix + "eos_token_id", len(tokens)),
        add_bos_token=gguf_config.adds_bos(metadata, model, pre),
    )


def _open_folder(path: Path) -> Checkpoint:
    config = _canonical_config(path, _read_json(path / "config.json"))
    registry.family(config["model_type"])
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{path} has neither .safetensors nor pytorch_model*.bin files, so there are no "
            "weights to load."
        )
    generation_config = _read_json_if_present(path / "generation_config.json")
    tokenizer_config = _read_json_if_present(path / "tokenizer_config.json")
    chat_template = _chat_template(path, tokenizer_config)
    tokenizer_json, files = None, None
    if not (path / "tokenizer.json").exists():
        files = read_tokenizer_files(path, config, generation_config, tokenizer_config)
    if files is None:
        tokenizer_json = _read_text(path / "tokenizer.json")
    eos_token_ids = (
        *_eos_token_ids(path, generation_config, config),
        *stop_token_ids(generation_config, files, tokenizer_config, chat_template),
    )
    return Checkpoint(
        path=path,
        format="safetensors",
        config=config,
        generation_config=generation_config,
        eos_token_ids=tuple(dict.fromkeys(eos_token_ids)),
        chat_template=chat_template,
        tokenizer_json=tokenizer_json,
        tokenizer_config=tokenizer_config,
        tokenizer_files=files,
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path.parent} has no {path.name}.") from exc
    except UnicodeDecodeError as exc:
        raise CheckpointError(f"{path} is not UTF-8 text.") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}.") from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not valid JSON: {exc}.") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return value


def _read_json_if_present(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.exists() else {}


def _canonical_config(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """One spelling for the keys that transformers 5 renamed."""
    config = dict(raw)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path / 'config.json'} has no model_type.")
    old_dtype = config.pop("torch_dtype", None)
    config.setdefault("dtype", old_dtype)
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    if not isinstance(rope, dict):
        raise CheckpointError(f"{path / 'config.json'}: rope_parameters is not an object.")
    scaling = dict(rope)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in scaling:
            config[key] = scaling.pop(key)
    config["rope_scaling"] = scaling or None
    return config


def _eos_token_ids(
    path: Path, generation_config: dict[str, Any], config: dict[str, Any]
) -> tuple[int, ...]:
    for source in (generation_config, config):
        value = source.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise CheckpointError(f"{path}: eos_token_id {value!r} is not a token id or a list.")
        return tuple(ids)
    return ()


def _chat_template(path: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins; in tokenizer_config.json it is a text or a list of named texts."""
    file = path / "chat_template.jinja"
    if file.exists():
        return _read_text(file)
    template = tokenizer_config.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list):
        for entry in template:
            if isinstance(entry, dict) and entry.get("name") == "default":
                text = entry.get("template")
                if isinstance(text, str):
                    return text
    raise CheckpointError(
        f"{path / 'tokenizer_config.json'}: chat_template is neither a text nor a list of named "
        'texts with one called "default".'
    )
