"""Reads a hub tokenizer.json: its tokens' bytes, its bos rule, and the library's tokenizer of it.

Knows the format of that file and nothing else; library_tokenizer.py puts the parts together.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from protocol.token_text import byte_level_bytes, sentencepiece_bytes


def spelling_decoder(spec: Mapping[str, Any]) -> Callable[[str], bytes]:
    """How a tokenizer.json spells its tokens. Raises ValueError for a way that is not known."""
    kind = spec.get("model", {}).get("type")
    if kind not in ("BPE", "Unigram"):
        raise ValueError(f"unsupported tokenizer model {kind!r} (supported: BPE, Unigram)")
    decoder = json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])
    if '"ByteLevel"' in decoder:
        return byte_level_bytes
    if '"Metaspace"' in decoder or '"ByteFallback"' in decoder or '"Replace"' in decoder:
        return sentencepiece_bytes
    raise ValueError("tokenizer.json has neither a byte-level nor a SentencePiece decoder")


def token_table(
    pieces: Mapping[str, int], decode_spelling: Callable[[str], bytes], added: Mapping[int, str]
) -> list[bytes]:
    """Bytes by token id; added tokens are spelled as plain text."""
    table = [b""] * (max([*pieces.values(), *added], default=-1) + 1)
    for spelling, token_id in pieces.items():
        table[token_id] = decode_spelling(spelling)
    for token_id, content in added.items():
        table[token_id] = content.encode()
    return table


def template_adds_bos(post_processor: Mapping[str, Any] | None) -> bool:
    """Whether a tokenizer.json puts a special token before a single text."""
    if post_processor is None:
        return False
    steps = post_processor.get("processors", [post_processor])
    return any("SpecialToken" in step["single"][0] for step in steps if step.get("single"))


def config_token(value: str | Mapping[str, Any] | None) -> str | None:
    """A token of tokenizer_config.json: its text, or an AddedToken as an object."""
    return value["content"] if isinstance(value, Mapping) else value


def backend_with_sentinels(
    spec: dict[str, Any], sentinels: Mapping[str, str]
) -> tokenizers.Tokenizer:
    """The tokenizer of a parsed tokenizer.json with special tokens spelled as their sentinels.

    Changes `spec`. Padding, truncation and the post-processor go: they are the caller's business.
    """
    spec["truncation"] = spec["padding"] = spec["post_processor"] = None
    for entry in spec.get("added_tokens") or []:
        if entry["special"]:
            if entry["single_word"]:
                raise ValueError(f"special token {entry['content']!r} is marked single_word")
            entry["content"] = sentinels[entry["content"]]
    model = spec["model"]
    if model.get("unk_token") in sentinels:
        model["unk_token"] = sentinels[model["unk_token"]]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {sentinels.get(text, text): i for text, i in vocab.items()}
        merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [m for m in merges if "".join(m) not in sentinels]
    else:
        model["vocab"] = [[sentinels.get(text, text), score] for text, score in vocab]
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"the tokenizer.json cannot be used: {error}") from error
