"""Byte-level BPE, Unigram and the like: text to ids and back with the `tokenizers` library.

Owns the guarantee that text never becomes a control token unless the caller says so. Built from a
hub tokenizer.json or from the vocabulary of a GGUF file; knows nothing of chat templates or files.

How the guarantee works: inside the library each special token is spelled as a random sentinel that
no one can guess, so its real text is ordinary text to the library. Where a special token is meant,
its sentinel is put into the text.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import tokenizers
from tokenizers import AddedToken, models

from protocol.hub_tokenizer import (
    backend_with_sentinels,
    config_token,
    spelling_decoder,
    template_adds_bos,
    token_table,
)
from protocol.pretokenizers import split_rule
from protocol.special_text import SpecialText, TokenTable
from protocol.token_text import byte_level_bytes

# tokenizer.ggml.token_type; 1 is a normal token
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


class LibraryTokenizer:
    """Implements protocol.tokenizer.Tokenizer; see there."""

    def __init__(
        self,
        *,
        backend: tokenizers.Tokenizer,
        sentinels: Mapping[str, str],
        token_bytes: Sequence[bytes],
        special_tokens: Mapping[str, int],
        bos_token: str | None,
        eos_token: str | None,
        add_bos_token: bool,
    ) -> None:
        """Use from_json or from_gguf. `sentinels`: special token -> its spelling in `backend`."""
        self.special_tokens: Mapping[str, int] = MappingProxyType(dict(special_tokens))
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.prompt_prefix: tuple[int, ...] = ()
        if add_bos_token and bos_token is not None:
            self.prompt_prefix = (special_tokens[bos_token],)
        self._backend = backend
        self._table = TokenTable(token_bytes, special_tokens.values())
        self.vocab_size = len(self._table)
        self._sentinels = {special_tokens[text]: sentinel for text, sentinel in sentinels.items()}
        for token_id, sentinel in self._sentinels.items():
            if backend.token_to_id(sentinel) != token_id:
                raise ValueError(f"special token id {token_id} does not fit into the vocabulary")
        self._special_text = SpecialText(special_tokens)
        self.adds_space = self.decode(self.encode_parts(["a"])).startswith(" ")

    @classmethod
    def from_json(
        cls, tokenizer_json: str, tokenizer_config: Mapping[str, Any] = MappingProxyType({})
    ) -> Self:
        """Build from the text of a tokenizer.json and the parsed tokenizer_config.json.

        Raises:
            ValueError: a kind of tokenizer whose token bytes are not known.
        """
        spec = json.loads(tokenizer_json)
        decode_spelling = spelling_decoder(spec)
        vocab = spec["model"]["vocab"]  # BPE: spelling -> id; Unigram: [spelling, score] by id
        pieces = (
            vocab if isinstance(vocab, dict) else {piece[0]: i for i, piece in enumerate(vocab)}
        )
        added = spec.get("added_tokens") or []
        table = token_table(
            pieces, decode_spelling, {entry["id"]: entry["content"] for entry in added}
        )
        special = {entry["content"]: entry["id"] for entry in added if entry["special"]}
        add_bos = tokenizer_config.get("add_bos_token")
        if not isinstance(add_bos, bool):
            add_bos = template_adds_bos(spec.get("post_processor"))
        sentinels = _new_sentinels(special)
        return cls(
            backend=backend_with_sentinels(spec, sentinels),
            sentinels=sentinels,
            token_bytes=table,
            special_tokens=special,
            bos_token=config_token(tokenizer_config.get("bos_token")),
            eos_token=config_token(tokenizer_config.get("eos_token")),
            add_bos_token=add_bos,
        )

    @classmethod
    def from_gguf(
        cls,
        *,
        model: str,
        pre: str,
        tokens: list[str],
        token_types: list[int],
        merges: list[str],
        bos_token_id: int | None,
        eos_token_id: int | None,
        add_bos_token: bool,
    ) -> Self:
        """Build from the tokenizer.ggml.* values of a GGUF file.

        Raises:
            ValueError: an unknown model or pre-tokenizer, or lists that do not fit together.
        """
        if model != "gpt2":
            raise ValueError(f"unsupported GGUF tokenizer model {model!r} (supported: 'gpt2')")
        rule = split_rule(pre)
        if len(tokens) != len(token_types):
            raise ValueError(f"{len(tokens)} tokens but {len(token_types)} token types")
        special = {t: i for i, t in enumerate(tokens) if token_types[i] == _CONTROL}
        user_defined = [t for i, t in enumerate(tokens) if token_types[i] == _USER_DEFINED]
        sentinels = _new_sentinels(special)
        try:
            bpe = models.BPE(
                vocab={sentinels.get(token, token): i for i, token in enumerate(tokens)},
                merges=_split_merges(merges, special),
                ignore_merges=rule.ignore_merges,
            )
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"the GGUF vocabulary cannot be used: {error}") from error
        backend = tokenizers.Tokenizer(bpe)
        normalizer = rule.normalizer()
        if normalizer is not None:
            backend.normalizer = normalizer
        backend.pre_tokenizer = rule.pre_tokenizer()
        backend.add_special_tokens(
            [AddedToken(s, normalized=False, special=True) for s in sentinels.values()]
        )
        backend.add_tokens([AddedToken(t, normalized=False) for t in user_defined])
        return cls(
            backend=backend,
            sentinels=sentinels,
            token_bytes=[
                _gguf_token_bytes(t, kind) for t, kind in zip(tokens, token_types, strict=True)
            ],
            special_tokens=special,
            bos_token=_token_at(tokens, bos_token_id),
            eos_token=_token_at(tokens, eos_token_id),
            add_bos_token=add_bos_token,
        )

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return self.encode_parts(self.split_special(text) if parse_special else [text])

    def split_special(self, text: str) -> list[str | int]:
        return self._special_text.split(text)

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        text = "".join(self._sentinels[p] if isinstance(p, int) else p for p in parts)
        try:
            # A batch, unlike a single text, is encoded without the interpreter's lock: other
            # requests go on meanwhile. "fast" leaves out the offsets, which nobody needs.
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        except TypeError as error:  # how the library reports a str without a UTF-8 form
            raise ValueError("the text has a lone surrogate, so it is not valid Unicode") from error
        ids: list[int] = encoding.ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._table.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        return self._table.is_special(token_id)

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._table.decode(token_ids, skip_special=skip_special)


def _new_sentinels(special: Iterable[str]) -> dict[str, str]:
    """Spellings that no text contains: 96 random bits between private-use characters."""
    return {text: f"\ue000{secrets.token_hex(12)}\ue001" for text in special}


def _token_at(tokens: Sequence[str], token_id: int | None) -> str | None:
    if token_id is None:
        return None
    if not 0 <= token_id < len(tokens):
        raise ValueError(f"token id {token_id} is outside the vocabulary of {len(tokens)}")
    return tokens[token_id]


def _gguf_token_bytes(token: str, kind: int) -> bytes:
    if kind == _UNUSED:
        return b""
    return token.encode() if kind in (_CONTROL, _USER_DEFINED) else byte_level_bytes(token)


def _split_merges(merges: Iterable[str], special: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges as pairs, less those that would build a special token's text."""
    pairs = (merge.partition(" ") for merge in merges)
    return [(left, right) for left, _, right in pairs if left + right not in special]
