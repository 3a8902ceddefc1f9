"""Token ids to text increments for one choice: whole characters only, constant work per token.

Knows a token only by its bytes (protocol/tokenizer.py). Called by the server for every token event.
"""

import codecs
from collections.abc import Sequence

from protocol.tokenizer import Tokenizer


class Detokenizer:
    """Incremental: feed() and flush() joined equal Tokenizer.decode() of all ids at once.

    With starts_text, less the space that the tokenizer itself put in front of the text; with
    strips_start, less all white space in front of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        starts_text: bool = False,
        strips_start: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drops_space = starts_text and tokenizer.adds_space
        self._strips_start = strips_start
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """Text these tokens complete; an unfinished character is held, invalid bytes are U+FFFD."""
        tokenizer = self._tokenizer
        data = b"".join(
            tokenizer.token_bytes(token_id)
            for token_id in token_ids
            if not (self._skip_special and tokenizer.is_special(token_id))
        )
        if self._drops_space and data:
            self._drops_space = False
            data = data.removeprefix(b" ")
        return self._strip(self._decoder.decode(data))

    def flush(self) -> str:
        """End of the stream: U+FFFD for a character that was never finished, else ""."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if self._strips_start:
            text = text.lstrip()
            self._strips_start = not text
        return text
