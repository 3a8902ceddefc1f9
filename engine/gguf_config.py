"""What the metadata of a GGUF file means, in the words of a hub config.json. No torch.

Called by engine/checkpoint.py. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from typing import Any

import numpy as np

from engine.errors import CheckpointError
from engine.gguf import GgufFile

# Control tokens that end a generation, as llama.cpp looks them up by their text. Its list also has
# the fill-in-the-middle separators; the hub's generation configs do not, and neither do we.
_END_OF_GENERATION = frozenset(
    [
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "</s>",
        "<eos>",
    ]
)
_CONTROL = 3  # token type
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")  # pre-tokenizers of Llama 3


class Metadata:
    """Typed look-ups. Keys with a leading dot belong to the architecture: ".block_count"."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.architecture = ""
        self.architecture = self.text("general.architecture")

    def _key(self, key: str) -> str:
        return self.architecture + key if key.startswith(".") else key

    def has(self, key: str) -> bool:
        return self._key(key) in self._file.metadata

    def _get(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
        name = self._key(key)
        if name not in self._file.metadata:
            raise CheckpointError(f"{self._file.path} has no metadata key {name!r}.")
        value = self._file.metadata[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"{self._file.path}: metadata key {name!r} is not {what}.")
        return value

    def text(self, key: str) -> str:
        value: str = self._get(key, str, "a string")
        return value

    def flag(self, key: str) -> bool:
        value: bool = self._get(key, bool, "a boolean")
        return value

    def integer(self, key: str) -> int:
        value: int = self._get(key, int, "an integer")
        return value

    def number(self, key: str) -> float:
        return float(self._get(key, (int, float), "a number"))

    def strings(self, key: str) -> list[str]:
        return self._items(key, str, "an array of strings")

    def integers(self, key: str) -> list[int]:
        return self._items(key, int, "an array of integers")

    def _items(self, key: str, kind: type, what: str) -> list[Any]:
        value: list[Any] = self._get(key, list, what)
        if value and not isinstance(value[0], kind):  # arrays are of one type
            raise CheckpointError(f"{self._file.path}: metadata key {key!r} is not {what}.")
        return value

    def token_id(self, key: str, num_tokens: int) -> int | None:
        """The id stored under `key`, or None where the key is absent or names no token."""
        if not self.has(key):
            return None
        token_id = self.integer(key)
        return token_id if 0 <= token_id < num_tokens else None


def hub_config(file: GgufFile, metadata: Metadata) -> dict[str, Any]:
    """The keys of a config.json that describe the decoder in `file`."""
    num_heads = metadata.integer(".attention.head_count")
    hidden_size = metadata.integer(".embedding_length")
    if num_heads < 1:
        raise CheckpointError(f"{file.path} claims to have {num_heads} attention heads.")
    # The format leaves key_length out where it is this quotient; a wrong one fails on the shapes.
    head_dim = _integer_or(metadata, ".attention.key_length", hidden_size // num_heads)
    rotary_dim = _integer_or(metadata, ".rope.dimension_count", head_dim)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path} has no tensor 'token_embd.weight'.")
    return {
        "model_type": metadata.architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": metadata.integer(".feed_forward_length"),
        "num_hidden_layers": metadata.integer(".block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _integer_or(metadata, ".attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "partial_rotary_factor": rotary_dim / head_dim if head_dim else 1.0,
        "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number(".rope.freq_base")
        if metadata.has(".rope.freq_base")
        else 10000.0,
        "rope_scaling": _rope_scaling(file, metadata),
        "max_position_embeddings": metadata.integer(".context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "hidden_act": "silu",
    }


def _integer_or(metadata: Metadata, key: str, default: int) -> int:
    return metadata.integer(key) if metadata.has(key) else default


def _rope_scaling(file: GgufFile, metadata: Metadata) -> dict[str, Any] | None:
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:  # how the format stores Llama 3's scaling: a divisor per frequency
        if factors.type_name != "F32":
            raise CheckpointError(f"{file.path}: tensor 'rope_freqs.weight' is not F32.")
        return {"rope_type": "factors", "factors": factors.data.view(np.float32).tolist()}
    kind = metadata.text(".rope.scaling.type") if metadata.has(".rope.scaling.type") else "none"
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind}
    if metadata.has(".rope.scaling.factor"):
        scaling["factor"] = metadata.number(".rope.scaling.factor")
    return scaling


def eos_token_ids(metadata: Metadata, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    """The declared eos id first, then every other control token that ends a generation."""
    declared = metadata.token_id("tokenizer.ggml.eos_token_id", len(tokens))
    ids = [] if declared is None else [declared]
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _CONTROL and token in _END_OF_GENERATION and token_id != declared:
            ids.append(token_id)
    return tuple(ids)


def token_types(metadata: Metadata, num_tokens: int) -> list[int]:
    """One type for each token; in a file without the list every token is normal."""
    key = "tokenizer.ggml.token_type"
    if not metadata.has(key):
        return [1] * num_tokens
    types = metadata.integers(key)
    if len(types) != num_tokens:
        raise CheckpointError(f"The GGUF file has {num_tokens} tokens but {len(types)} types.")
    return types


def adds_bos(metadata: Metadata, model: str, pre: str) -> bool:
    """Whether the tokenizer puts bos before a text; without the key, what llama.cpp does."""
    key = "tokenizer.ggml.add_bos_token"
    return metadata.flag(key) if metadata.has(key) else model == "llama" or pre in _BOS_BY_DEFAULT
