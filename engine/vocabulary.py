"""How many of a model's ids are tokens; the others only pad its embedding.

Told from the tokenizer's files, without a tokenizer library.
"""

import json

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError

_UNUSED_TOKEN = 5  # GGUF token type


def num_valid_tokens(checkpoint: Checkpoint, vocab_size: int) -> int:
    """Ids below this are tokens; the rows above only pad the embedding and are never sampled."""
    if checkpoint.gguf_vocabulary is not None:
        types = checkpoint.gguf_vocabulary.token_types
        used = (i for i in range(len(types) - 1, -1, -1) if types[i] != _UNUSED_TOKEN)
        return min(next(used) + 1, vocab_size)
    if checkpoint.tokenizer_files is not None:
        return min(checkpoint.tokenizer_files.num_tokens, vocab_size)
    if checkpoint.tokenizer_json is None:
        return vocab_size
    try:
        tokenizer = json.loads(checkpoint.tokenizer_json)
        vocab = tokenizer["model"]["vocab"]
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        added = (token["id"] for token in tokenizer.get("added_tokens", ()))
        return min(max(max(ids), max(added, default=0)) + 1, vocab_size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{checkpoint.path}: tokenizer.json is not valid: {exc!r}") from exc
