"""Special tokens in a text, and the bytes of every token: what all tokenizers do alike.

Knows no tokenizer library; the implementations of protocol/tokenizer.py are built on it.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType


class SpecialText:
    """Finds special tokens in texts."""

    def __init__(
        self, special_tokens: Mapping[str, int], *, only_behind_others: Collection[str] = ()
    ) -> None:
        """Where one token begins another, the longer one is found.

        Those named in `only_behind_others` are found only right behind another special token: for
        ChatGLM's "sop", which is no control token in "philosophy".
        """
        self._ids = MappingProxyType(dict(special_tokens))
        longest_first = sorted(special_tokens, key=len, reverse=True)
        alternatives = [re.escape(t) for t in longest_first if t not in only_behind_others]
        behind = "|".join(f"(?<={other})" for other in alternatives)
        if behind:
            alternatives += [f"(?:{behind}){re.escape(token)}" for token in only_behind_others]
        self._pattern = re.compile("|".join(alternatives) or r"(?!)")

    def split(self, text: str) -> list[str | int]:
        """The texts between special tokens, ids in their places."""
        parts: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text):
            if match.start() > end:
                parts.append(text[end : match.start()])
            parts.append(self._ids[match[0]])
            end = match.end()
        if end < len(text):
            parts.append(text[end:])
        return parts


class TokenTable:
    """Bytes by token id, and which ids are special."""

    def __init__(self, token_bytes: Sequence[bytes], special_ids: Iterable[int]) -> None:
        self._token_bytes = list(token_bytes)
        while self._token_bytes and not self._token_bytes[-1]:
            self._token_bytes.pop()
        self._special_ids = frozenset(special_ids)

    def __len__(self) -> int:
        return len(self._token_bytes)

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def decode(self, token_ids: Iterable[int], *, skip_special: bool) -> str:
        kept = (i for i in token_ids if not (skip_special and i in self._special_ids))
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")


def joined(parts: Iterable[str | int]) -> list[str | int]:
    """The same parts with neighbouring texts put together and checked.

    Raises:
        ValueError: a lone surrogate in a text.
    """
    result: list[str | int] = []
    texts: list[str] = []
    for part in [*parts, 0]:  # the 0 ends the last text
        if isinstance(part, str):
            texts.append(part)
            continue
        text = "".join(texts)
        if text:
            check_unicode(text)
            result.append(text)
        texts.clear()
        result.append(part)
    result.pop()
    return result


def check_unicode(text: str) -> None:
    """Raises ValueError for a text without a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text has a lone surrogate, so it is not valid Unicode") from error
