"""Brings an answer that follows a grammar to its end before its tokens run out. Torch-free.

Cut off in the middle, JSON is of no use to anyone, and weak models go on with a string or a list
for ever. So near the limit a token is only taken if the grammar can still be completed behind it in
the tokens that are left; where it cannot, the way to the end is taken that was found before.
"""

from collections.abc import Sequence as Items
from itertools import chain

from llguidance import LLMatcher

from engine.token_bytes import TokenBytes

_MAX_BYTES = 2000  # of a way to the end
_MAX_TOKEN_BYTES = 8  # of the tokens of a way on average; text has 3 to 4
_FIRST_LOOK = 1024  # tokens that are left when the way is first looked for
_NEAR = 64  # tokens beyond twice the longest way's, from which on each token is looked at

# What ends something that is open, before what only goes on with it; white space leads nowhere.
_BRACKETS = (b"}", b"]", b")")
_QUOTE, _LETTER = b'"', b"a"
_VISIBLE = (*b",:0123456789abcdefghijklmnopqrstuvwxyz", *range(33, 127))
_OTHERS = tuple(bytes([i]) for i in dict.fromkeys((*_VISIBLE, *range(256))))


class Spelling:
    """Texts as few tokens: the longest that fits, again and again.

    Attributes:
        eos_token_id: one of the tokens that end an output; None for a model without any.
    """

    def __init__(
        self, token_bytes: TokenBytes, vocab_size: int, eos_token_ids: Items[int] = ()
    ) -> None:
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else None
        special = frozenset(token_bytes.special_ids)
        self._ids = {
            text: token_id
            for token_id, text in enumerate(token_bytes.tokens[:vocab_size])
            if text and token_id not in special
        }
        self._max_length = max(map(len, self._ids), default=0)

    def bytewise(self, text: bytes) -> list[int] | None:
        """One token for each byte; None where the model has no token for one."""
        ids = [self._ids.get(bytes([byte])) for byte in text]
        return None if None in ids else [i for i in ids if i is not None]

    def __call__(self, text: bytes) -> list[int] | None:
        """None where the model has no token for a byte of it."""
        ids = []
        position = 0
        while position < len(text):
            for length in range(min(self._max_length, len(text) - position), 0, -1):
                token_id = self._ids.get(text[position : position + length])
                if token_id is not None:
                    ids.append(token_id)
                    position += length
                    break
            else:
                return None
        return ids


class Closing:
    """The end of one sequence's output.

    Attributes:
        has_begun: the tokens that are left are all needed, so they are chosen here.
    """

    __slots__ = ("_ends", "_longest", "_look_at", "_spelling", "_way", "has_begun")

    def __init__(self, spelling: Spelling, ends: Items[str]) -> None:
        """`ends`: texts that end something in this grammar, tried before all others."""
        self.has_begun = False
        self._spelling = spelling
        self._ends = [end.encode() for end in ends]
        self._look_at = _FIRST_LOOK
        self._longest = 0  # tokens of a way that was found
        self._way: list[int] | None = None  # from where the output is now, if it was looked for

    @property
    def is_over(self) -> bool:
        return self.has_begun and not self._way

    def vet(self, matcher: LLMatcher, token_id: int, num_left: int) -> int:
        """The token to take: `token_id`, or another if the output could not be completed then.

        Args:
            matcher: where the output is now; not changed.
            num_left: tokens that the output may still get, this one included.
        """
        if self._way and self.has_begun:
            return self._way.pop(0)
        if num_left > self._look_at:
            self._way = None
            return token_id
        ahead = matcher.deep_copy()
        if not ahead.consume_token(token_id):
            return token_id  # the caller's to notice
        way = [] if ahead.is_stopped() else self._find(ahead, num_left)
        if way is not None and len(way) < num_left:
            self._way = way
            self._longest = max(self._longest, len(way))
            # what is opened next is likely to need as much as what was before
            near = 2 * self._longest + _NEAR
            self._look_at = max(near, (num_left + near) // 2)
            return token_id
        end = self._begin(matcher, num_left)
        return token_id if end is None else end

    def replay_begin(self, matcher: LLMatcher, num_left: int) -> None:
        """What `vet` did where it began to choose: its argument, then, is not known any more."""
        self._begin(matcher, num_left)

    def _begin(self, matcher: LLMatcher, num_left: int) -> int | None:
        """The first token of the way to the end, None if there is no way."""
        if self._way is None:
            self._way = self._find(matcher, num_left)
        if self._way is None or len(self._way) > num_left:
            self._way, self._look_at = None, num_left // 2  # looking costs more than the rest
            return None
        end = self._way.pop(0) if self._way else self._spelling.eos_token_id
        self.has_begun = end is not None
        return end

    def _find(self, matcher: LLMatcher, num_left: int) -> list[int] | None:
        """A short way from here to where the output may end; None if none is found that may fit."""
        max_bytes = min(_MAX_BYTES, _MAX_TOKEN_BYTES * num_left)
        state = matcher.deep_copy()
        text = b""
        while not state.is_accepting():
            step = state.compute_ff_bytes() or self._step(state)
            ids = self._spelling.bytewise(step)
            if not step or ids is None or not state.consume_tokens(ids):
                return None
            text += step
            if len(text) > max_bytes:
                return None
        return self._spelling(text)

    def _step(self, state: LLMatcher) -> bytes:
        """The first text that may follow, b"" if none does."""
        is_in_text = self._follows(state, _LETTER)  # where a bracket would be a part of it
        ends = (_QUOTE, *_BRACKETS) if is_in_text else (*_BRACKETS, _QUOTE)
        candidates = chain(self._ends, ends, _OTHERS)
        return next((text for text in candidates if self._follows(state, text)), b"")

    def _follows(self, state: LLMatcher, text: bytes) -> bool:
        ids = self._spelling.bytewise(text)
        return ids is not None and state.validate_tokens(ids) == len(ids)
