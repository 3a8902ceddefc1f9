"""A tokenizer.json for checkpoints that have only vocab.json and merges.txt (Qwen1.5, Qwen2).

Source: transformers' Qwen2Tokenizer: NFC, the Qwen split pattern, byte-level BPE; added tokens from
tokenizer_config.json (added_tokens_decoder) or, in older folders, from added_tokens.json.
"""

import json
from collections.abc import Mapping
from typing import Any

from protocol.hub_tokenizer import config_token
from protocol.pretokenizers import split_rule

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULT_TOKEN = "<|endoftext|>"  # what Qwen2Tokenizer adds where nothing is said


def tokenizer_json(
    vocab_json: str,
    merges_text: str,
    tokenizer_config: Mapping[str, Any],
    added_tokens_json: str | None = None,
) -> str:
    """The text of the tokenizer.json that says the same.

    Raises:
        ValueError: a file that is not what its name says.
    """
    vocab = json.loads(vocab_json)
    if not isinstance(vocab, dict):
        raise ValueError("vocab.json does not hold a JSON object")
    rule = split_rule("qwen2")
    splits = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in rule.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    byte_level["trim_offsets"] = False
    spec = {
        "version": "1.0",
        "added_tokens": _added_tokens(vocab, tokenizer_config, added_tokens_json),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(merges_text)},
    }
    return json.dumps(spec)


def _merges(text: str) -> list[list[str]]:
    lines = text.split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line.split(" ") for line in lines if line.strip()]
    for pair in merges:
        if len(pair) != 2:
            raise ValueError(f"merges.txt: {' '.join(pair)!r} is not two tokens")
    return merges


def _added_tokens(
    vocab: Mapping[str, int], config: Mapping[str, Any], added_tokens_json: str | None
) -> list[dict[str, Any]]:
    declared = config.get("added_tokens_decoder")
    if declared:
        entries = [{**_PLAIN, **entry, "id": int(i)} for i, entry in declared.items()]
    else:
        ids = json.loads(added_tokens_json) if added_tokens_json else {}
        if not ids:
            ids = {_DEFAULT_TOKEN: len(vocab)}
        named = {config_token(config.get(name)) for name in _NAMED_TOKENS}
        listed = map(config_token, config.get("additional_special_tokens") or ())
        special = {_DEFAULT_TOKEN, *named, *listed}
        entries = [
            {**_PLAIN, "id": i, "content": token, "special": token in special}
            for token, i in ids.items()
        ]
    return sorted(entries, key=lambda entry: entry["id"])


_PLAIN: Mapping[str, Any] = {
    **{"single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
    "special": False,
}
