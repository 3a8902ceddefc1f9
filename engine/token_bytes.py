"""The exact bytes of every token, which a grammar is matched against. Torch-free.

Read from what the checkpoint says of its tokenizer, without a tokenizer library. The server's
tokenizers (protocol/) know the same; tests/engine/test_token_bytes.py holds the two together.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec

from engine.checkpoint import Checkpoint, GgufVocabulary
from engine.errors import CheckpointError
from engine.sentencepiece_file import read_pieces
from engine.tokenizer_files import MergesFiles, SentencePieceFile, TiktokenFiles

_GGUF_CONTROL, _GGUF_USER_DEFINED, _GGUF_UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
_UNKNOWN, _CONTROL = 2, 3  # SentencePiece.type
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DEFAULT_TOKEN = "<|endoftext|>"  # what Qwen2Tokenizer adds where nothing is said
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TokenBytes(msgspec.Struct, frozen=True):
    """Bytes by token id, b"" for an id that is no token; special tokens stand for no text."""

    tokens: list[bytes]
    special_ids: list[int]


def read_token_bytes(checkpoint: Checkpoint) -> TokenBytes:
    """Raises CheckpointError for a tokenizer whose tokens' bytes are not known."""
    try:
        return _read(checkpoint)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(
            f"{checkpoint.path}: the tokens' bytes cannot be told: {exc!r}"
        ) from exc


def _read(checkpoint: Checkpoint) -> TokenBytes:
    if checkpoint.gguf_vocabulary is not None:
        return _of_gguf(checkpoint.gguf_vocabulary)
    match checkpoint.tokenizer_files:
        case TiktokenFiles() as files:
            return _of_tiktoken(files)
        case MergesFiles() as files:
            added = _added_of_merges(files, checkpoint.tokenizer_config)
            return _of_pieces(json.loads(files.vocab), _byte_level, added)
        case SentencePieceFile() as file:
            return _of_sentencepiece(file)
    spec = json.loads(checkpoint.tokenizer_json or "{}")
    vocab = spec["model"]["vocab"]  # BPE: spelling -> id; Unigram: [spelling, score] by id
    pieces = vocab if isinstance(vocab, dict) else {piece[0]: i for i, piece in enumerate(vocab)}
    added = {token["id"]: token for token in spec.get("added_tokens") or ()}
    return _of_pieces(pieces, _spelling(spec), added)


def _spelling(spec: Mapping[str, Any]) -> Callable[[str], bytes]:
    decoder = json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])
    if '"ByteLevel"' in decoder:
        return _byte_level
    if any(f'"{name}"' in decoder for name in ("Metaspace", "ByteFallback", "Replace")):
        return _sentencepiece
    raise ValueError("tokenizer.json has neither a byte-level nor a SentencePiece decoder")


def _of_pieces(
    pieces: Mapping[str, int],
    spelling: Callable[[str], bytes],
    added: Mapping[int, Mapping[str, Any]],
) -> TokenBytes:
    tokens = [b""] * (max([*pieces.values(), *added]) + 1)
    for piece, token_id in pieces.items():
        tokens[token_id] = spelling(piece)
    for token_id, token in added.items():
        tokens[token_id] = token["content"].encode()
    return TokenBytes(tokens, [i for i, token in added.items() if token.get("special")])


def _added_of_merges(files: MergesFiles, config: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    declared = config.get("added_tokens_decoder")
    if declared:
        return {int(token_id): token for token_id, token in declared.items()}
    ids = json.loads(files.added_tokens) if files.added_tokens else {}
    if not ids:
        ids = {_DEFAULT_TOKEN: len(json.loads(files.vocab))}
    listed = [
        *(config.get(name) for name in _NAMED_TOKENS),
        *(config.get("additional_special_tokens") or ()),
    ]
    special = {token["content"] if isinstance(token, Mapping) else token for token in listed}
    special.add(_DEFAULT_TOKEN)
    return {i: {"content": token, "special": token in special} for token, i in ids.items()}


def _of_gguf(vocabulary: GgufVocabulary) -> TokenBytes:
    if vocabulary.model != "gpt2":
        raise ValueError(f"unsupported GGUF tokenizer model {vocabulary.model!r}")
    tokens = []
    for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True):
        if kind == _GGUF_UNUSED:
            tokens.append(b"")
        else:
            plain = kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED)
            tokens.append(token.encode() if plain else _byte_level(token))
    kinds = enumerate(vocabulary.token_types)
    return TokenBytes(tokens, [i for i, kind in kinds if kind == _GGUF_CONTROL])


def _of_tiktoken(files: TiktokenFiles) -> TokenBytes:
    tokens = [b""] * files.num_tokens
    for data in (files.ranks, files.extra_ranks or b""):
        for line in data.splitlines():
            if line:
                token, token_id = line.split()
                tokens[int(token_id)] = base64.b64decode(token, validate=True)
    for text, i in files.special_tokens.items():
        tokens[i] = text.encode()
    return TokenBytes(tokens, list(files.special_tokens.values()))


def _of_sentencepiece(file: SentencePieceFile) -> TokenBytes:
    pieces = read_pieces(file.model)
    control = {i for i, (_, kind) in enumerate(pieces) if kind == _CONTROL} | {*file.control_ids}
    tokens = [
        text.encode() if i in control else _sentencepiece(text)
        for i, (text, _) in enumerate(pieces)
    ]
    special = control | {i for i, (_, kind) in enumerate(pieces) if kind == _UNKNOWN}
    special |= {len(pieces) + i for i in range(len(file.appended))}
    return TokenBytes([*tokens, *(token.encode() for token in file.appended)], sorted(special))


@cache
def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level spelling (openai/gpt-2, src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(spelling: str) -> bytes:
    alphabet = _byte_alphabet()
    try:
        return bytes([alphabet[character] for character in spelling])
    except KeyError:
        return spelling.encode()


def _sentencepiece(spelling: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(spelling)
    return bytes([int(match[1], 16)]) if match else spelling.replace("▁", " ").encode()
