"""Tokenizer of the first Qwen models: a qwen.tiktoken file, on the `tiktoken` library.

Source: tokenization_qwen.py of Qwen/Qwen-7B (NFC first, then byte-level BPE by rank; digits one by
one). Unlike there, text never becomes a control token unless the caller says so.
"""

import base64
import binascii
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Self

import tiktoken

from protocol.special_text import SpecialText, TokenTable, joined

# PAT_STR of tokenization_qwen.py
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_MAX_ID = 1 << 24  # far above any vocabulary


class TiktokenTokenizer:
    """Implements protocol.tokenizer.Tokenizer. The models have no bos token."""

    bos_token: str | None = None
    prompt_prefix: tuple[int, ...] = ()
    adds_space = False

    def __init__(
        self, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int], eos_token: str | None
    ) -> None:
        """`ranks`: bytes of the regular tokens -> id. Raises ValueError where an id is taken."""
        self.special_tokens: Mapping[str, int] = MappingProxyType(dict(special_tokens))
        self.eos_token = eos_token
        self._special_text = SpecialText(special_tokens)
        table: dict[int, bytes] = {}
        named = ((text.encode(), i) for text, i in special_tokens.items())
        for data, token_id in (*ranks.items(), *named):
            if not 0 <= token_id < _MAX_ID or token_id in table:
                raise ValueError(f"the id {token_id} is given twice or is not a sensible id")
            table[token_id] = data
        self._table = TokenTable(
            [table.get(i, b"") for i in range(max(table) + 1)], special_tokens.values()
        )
        self.vocab_size = len(self._table)
        # The library's own special tokens stay empty: none can come out of a text.
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=_PATTERN, mergeable_ranks=dict(ranks), special_tokens={}
        )

    @classmethod
    def from_files(
        cls,
        ranks: bytes,
        special_tokens: Mapping[str, int],
        *,
        extra_ranks: bytes | None = None,
        eos_token: str | None = None,
    ) -> Self:
        """Build from the contents of qwen.tiktoken and, where there is one, qwen_extra.tiktoken.

        Raises:
            ValueError: a line is not "<base64> <id>", or two tokens have one id.
        """
        extra = _read_ranks(extra_ranks) if extra_ranks is not None else {}
        return cls({**_read_ranks(ranks), **extra}, special_tokens, eos_token)

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return self.encode_parts(self.split_special(text) if parse_special else [text])

    def split_special(self, text: str) -> list[str | int]:
        return self._special_text.split(text)

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        for part in joined(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encoding.encode_ordinary(unicodedata.normalize("NFC", part))
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._table.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        return self._table.is_special(token_id)

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._table.decode(token_ids, skip_special=skip_special)


def _read_ranks(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is not a token in base64 and its id") from error
    if not ranks:
        raise ValueError("the file has no tokens")
    return ranks
