"""The tokenizer files of a folder without tokenizer.json, unread but for their special tokens.

Three kinds: qwen.tiktoken (Qwen), vocab.json + merges.txt (the first Qwen1.5 and Qwen2), and
tokenizer.model (Baichuan, ChatGLM). Each only for the families whose rules for it are known: the
same file with another family's rules gives wrong ids without any error. Needs no tokenizer library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.sentencepiece_file import count_pieces

# tokenization_qwen.py: the ids behind those of the regular tokens
_QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{i}|>" for i in range(205)),
)
# tokenization_chatglm.py: the ids behind those of the pieces
_CHATGLM2_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM3_SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHATGLM_PREFIX = ("[gMASK]", "sop")
_QWEN2_TYPES = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
_ROLE_IDS = ("user_token_id", "assistant_token_id")  # of Baichuan2's generation_config.json


@dataclass(frozen=True, slots=True)
class TiktokenFiles:
    ranks: bytes = field(repr=False)  # qwen.tiktoken
    extra_ranks: bytes | None = field(repr=False)  # qwen_extra.tiktoken
    special_tokens: dict[str, int]

    @property
    def num_tokens(self) -> int:
        ids = [*self.special_tokens.values(), *_rank_ids(self.extra_ranks or b"")]
        return max(ids) + 1


@dataclass(frozen=True, slots=True)
class MergesFiles:
    vocab: str = field(repr=False)  # vocab.json
    merges: str = field(repr=False)  # merges.txt
    added_tokens: str | None  # added_tokens.json
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    model: bytes = field(repr=False)  # tokenizer.model
    num_pieces: int
    appended: tuple[str, ...]  # special tokens with the ids behind those of the pieces
    control_ids: tuple[int, ...]  # pieces that mark roles
    prefix: tuple[str, ...]  # special tokens that every prompt begins with

    @property
    def num_tokens(self) -> int:
        return self.num_pieces + len(self.appended)

    def appended_id(self, token: str) -> int:
        return self.num_pieces + self.appended.index(token)


TokenizerFiles = TiktokenFiles | MergesFiles | SentencePieceFile


def read_tokenizer_files(
    path: Path,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
) -> TokenizerFiles | None:
    """None where the folder has no tokenizer files that its family is known to use.

    Raises CheckpointError where one is missing or broken.
    """
    model_type = config["model_type"]
    try:
        if model_type == "qwen":
            return _tiktoken_files(path)
        if model_type in _QWEN2_TYPES and (path / "vocab.json").exists():
            return _merges_files(path, tokenizer_config)
        if model_type in ("baichuan", "chatglm") and (path / "tokenizer.model").exists():
            return _sentencepiece_file(path, config, generation_config, tokenizer_config)
    except OSError as exc:
        raise CheckpointError(f"{exc.filename} cannot be read: {exc.strerror}.") from exc
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"The tokenizer files of {path} are not valid: {exc}.") from exc
    return None


def is_chatglm3(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    """Told from ChatGLM2 by its name or its role tokens: the configs are otherwise alike."""
    added = tokenizer_config.get("added_tokens_decoder") or {}
    return "chatglm3" in str(config.get("_name_or_path")).lower() or any(
        token.get("content") == "<|user|>" for token in added.values()
    )


def _tiktoken_files(path: Path) -> TiktokenFiles | None:
    extra = path / "qwen_extra.tiktoken"
    found = [file for file in sorted(path.glob("*.tiktoken")) if file != extra]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{path} has more than one tokenizer: {names}.")
    ranks = found[0].read_bytes()
    num_regular = max(_rank_ids(ranks), default=-1) + 1
    if not num_regular:
        raise CheckpointError(f"{found[0]} has no tokens.")
    return TiktokenFiles(
        ranks=ranks,
        extra_ranks=extra.read_bytes() if extra.exists() else None,
        special_tokens={token: num_regular + i for i, token in enumerate(_QWEN_SPECIAL)},
    )


def _rank_ids(data: bytes) -> list[int]:
    return [int(line.rpartition(b" ")[2]) for line in data.splitlines() if line.strip()]


def _merges_files(path: Path, tokenizer_config: Mapping[str, Any]) -> MergesFiles:
    if not (path / "merges.txt").exists():
        raise CheckpointError(f"{path} has vocab.json but neither merges.txt nor tokenizer.json.")
    added_file = path / "added_tokens.json"
    added = added_file.read_text("utf-8") if added_file.exists() else None
    vocab = (path / "vocab.json").read_text("utf-8")
    ids = [
        *json.loads(vocab).values(),
        *(json.loads(added).values() if added else ()),
        *map(int, tokenizer_config.get("added_tokens_decoder") or ()),
    ]
    return MergesFiles(
        vocab=vocab,
        merges=(path / "merges.txt").read_text("utf-8"),
        added_tokens=added,
        num_tokens=max(ids) + 1,
    )


def _sentencepiece_file(
    path: Path,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
) -> SentencePieceFile:
    model = (path / "tokenizer.model").read_bytes()
    appended: tuple[str, ...] = ()
    control_ids: tuple[int, ...] = ()
    if config["model_type"] == "chatglm":
        appended = _CHATGLM2_SPECIAL
        if is_chatglm3(config, tokenizer_config):
            appended += _CHATGLM3_SPECIAL
    else:
        given = (generation_config.get(key) for key in _ROLE_IDS)
        control_ids = tuple(int(token_id) for token_id in given if token_id is not None)
    return SentencePieceFile(
        model=model,
        num_pieces=count_pieces(model),
        appended=appended,
        control_ids=control_ids,
        prefix=_CHATGLM_PREFIX if appended else (),
    )
