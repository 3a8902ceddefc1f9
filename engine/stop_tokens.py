"""The tokens that end a model's turn beside its declared eos: known by its family and its files.

The first Qwen models declare <|endoftext|> alone, and their chat models would run on for ever.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import CheckpointError
from engine.tokenizer_files import SentencePieceFile, TiktokenFiles, TokenizerFiles

_TURN_END = "<|im_end|>"


def stop_token_ids(
    generation_config: Mapping[str, Any],
    files: TokenizerFiles | None,
    tokenizer_config: Mapping[str, Any],
    chat_template: str | None,
) -> tuple[int, ...]:
    """Ids to stop at in addition to eos_token_id; may repeat it.

    Raises CheckpointError for stop_words_ids that cannot be honoured.
    """
    ids = list(_stop_words(generation_config))
    if isinstance(files, TiktokenFiles):
        ids.append(files.special_tokens["<|endoftext|>"])
        if generation_config.get("chat_format") == "chatml":
            ids += [files.special_tokens[_TURN_END], files.special_tokens["<|im_start|>"]]
    elif isinstance(files, SentencePieceFile):
        roles = ("<|user|>", "<|observation|>")  # of ChatGLM3: another's turn begins
        ids += [files.appended_id(role) for role in roles if role in files.appended]
    elif chat_template is not None and _TURN_END in chat_template:
        # early Qwen1.5-Chat declares <|endoftext|> alone
        ids += _added_ids(_TURN_END, tokenizer_config)
    return tuple(ids)


def _stop_words(generation_config: Mapping[str, Any]) -> Iterator[int]:
    words = generation_config.get("stop_words_ids") or []
    for word in words if isinstance(words, list) else [words]:
        if not isinstance(word, list) or len(word) != 1 or type(word[0]) is not int or word[0] < 0:
            raise CheckpointError(
                f"generation_config.json: the stop word {json.dumps(word)} in stop_words_ids is "
                "not one token, which is not supported."
            )
        yield word[0]


def _added_ids(token: str, tokenizer_config: Mapping[str, Any]) -> list[int]:
    added = tokenizer_config.get("added_tokens_decoder") or {}
    try:
        return [int(token_id) for token_id, entry in added.items() if entry["content"] == token]
    except (ValueError, TypeError, AttributeError, KeyError) as exc:
        raise CheckpointError(
            f"tokenizer_config.json: added_tokens_decoder is not valid: {exc!r}."
        ) from exc
