"""Tokenizer of Baichuan and ChatGLM: a tokenizer.model file, on the `sentencepiece` library.

A text gets the space in front that the file asks for (add_dummy_prefix), each text between two
special tokens for itself, as the models were trained. Text never becomes a control token unless
the caller says so: see protocol/sentencepiece_model.py.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import sentencepiece

from protocol.sentencepiece_model import with_control_pieces
from protocol.special_text import SpecialText, TokenTable, joined
from protocol.token_text import sentencepiece_bytes


class SentencePieceTokenizer:
    """Implements protocol.tokenizer.Tokenizer."""

    def __init__(
        self,
        model: bytes,
        *,
        appended: Sequence[str] = (),
        control_ids: Collection[int] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        """Build from the contents of a tokenizer.model file.

        Args:
            appended: special tokens whose ids follow those of the pieces.
            control_ids: pieces that are special although the file calls them ordinary.
            prefix: special tokens that plain prompts begin with.

        Raises:
            ValueError: not a SentencePiece model, or it has no such piece.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=with_control_pieces(model, control_ids)
            )
        except RuntimeError as error:  # all that the library raises
            raise ValueError(f"the SentencePiece model cannot be used: {error}") from error
        num_pieces: int = self._processor.vocab_size()
        if not all(0 <= piece_id < num_pieces for piece_id in control_ids):
            raise ValueError(f"a control token's id is not among the {num_pieces} pieces")
        pieces: list[str] = [self._processor.id_to_piece(i) for i in range(num_pieces)]
        kept = [i for i in range(num_pieces) if self._processor.is_control(i)]
        special = {pieces[i]: i for i in kept}
        special |= {token: num_pieces + i for i, token in enumerate(appended)}
        self.special_tokens: Mapping[str, int] = MappingProxyType(special)
        self.prompt_prefix = tuple(special[token] for token in prefix)
        bos_id, eos_id = self._processor.bos_id(), self._processor.eos_id()
        self.bos_token = pieces[bos_id] if bos_id >= 0 else None
        self.eos_token = pieces[eos_id] if eos_id >= 0 else None
        self.adds_space = self._processor.normalize("a").startswith("\u2581")
        words = [token for token in appended if token.isalnum()]
        self._special_text = SpecialText(special, only_behind_others=words)
        table = [
            piece.encode() if i in special.values() else sentencepiece_bytes(piece)
            for i, piece in enumerate(pieces)
        ]
        self._table = TokenTable(
            [*table, *(token.encode() for token in appended)],
            {*special.values(), self._processor.unk_id()},
        )
        self.vocab_size = len(self._table)

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
                ids += self._processor.encode(part)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._table.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        return self._table.is_special(token_id)

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._table.decode(token_ids, skip_special=skip_special)
