"""What the server needs of a tokenizer, whatever library does the work: the Tokenizer Protocol.

Implementations, one a file: library_tokenizer (tokenizer.json, vocab.json + merges.txt, GGUF),
tiktoken_tokenizer (qwen.tiktoken), sentencepiece_tokenizer (tokenizer.model).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Immutable once built; every method may be called from several threads."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that decodes to something."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens, text -> id."""

    @property
    def bos_token(self) -> str | None:
        """Text, or None where the model has none."""

    @property
    def eos_token(self) -> str | None:
        """Text, or None where the model has none."""

    @property
    def prompt_prefix(self) -> tuple[int, ...]:
        """What plain (not chat) prompts begin with, such as bos; encode() never adds it."""

    @property
    def adds_space(self) -> bool:
        """A text's first token begins with a space that is not in the text (SentencePiece)."""

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of a text. Adds no bos or eos.

        With parse_special=False no special token can come out, whatever the text says. Added tokens
        that are not special ("<tool_call>") are recognised either way, as transformers does.

        Raises:
            ValueError: the text has a lone surrogate, so it has no UTF-8 form.
        """

    def split_special(self, text: str) -> list[str | int]:
        """Cut a text at its special tokens: the texts between them, ids in their places."""

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Token ids of texts (nothing in them is special) and special ids, encoded as one text.

        Raises:
            ValueError: a lone surrogate in a text.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token; b"" for an id that only pads the model's vocabulary."""

    def is_special(self, token_id: int) -> bool: ...

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids, invalid UTF-8 as U+FFFD. A SentencePiece leading space is kept."""
