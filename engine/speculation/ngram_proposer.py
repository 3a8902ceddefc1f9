"""Drafts out of the sequence itself: what followed the last time that its newest tokens came.

Good where an answer repeats its prompt or itself: rewriting, code, extraction, JSON. Called by the
speculator.
"""

from collections.abc import Sequence as Items

from engine.sequence import Sequence
from engine.speculation.memory import Guess, Memory
from engine.speculation.ngram_index import MAX_LENGTH, MIN_LENGTH, continuation
from engine.speculation.planner import Offer
from engine.speculation.rates import Experience

# The kind of a guess is the length of its match, which grows with each guess that is right.
_SHORTEST_OF_KIND = (MIN_LENGTH, 3, 4, 6, 9, MAX_LENGTH)
_EXPECTED = (0.2, 0.3, 0.45, 0.6, 0.75, 0.85)  # low: what is right is soon known
_KINDS = tuple(
    max(kind for kind, shortest in enumerate(_SHORTEST_OF_KIND) if shortest <= max(length, 2))
    for length in range(MAX_LENGTH + 1)
)


class NgramProposer:
    """Looks up; costs a few microseconds a sequence."""

    def __init__(self) -> None:
        self._experience = Experience(_EXPECTED)

    def prepare(self, sequences: Items[Sequence]) -> None:
        """Nothing: what is new is taken in when it is asked for."""

    def offer(self, sequence: Sequence, max_drafts: int) -> Offer:
        """See Proposer."""
        memory = Memory.of(sequence, self._experience)
        if max_drafts < 1:
            return ()
        match = memory.index.find(sequence.token_ids)
        if match is None:
            return ()
        token_ids = continuation(sequence.token_ids, match.position, max_drafts)
        kinds = [_KINDS[min(match.length + i, MAX_LENGTH)] for i in range(max_drafts)]
        memory.guess = Guess(sequence.num_tokens, token_ids, kinds)
        return memory.chances(kinds, self._experience)

    def seconds(self, num_sequences: int, num_drafts: int) -> float:
        """Nothing: it is done when it is offered."""
        return 0.0

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        """See Proposer."""
        return [
            list(sequence.speculation.guess.token_ids[:count])
            if count and sequence.speculation and sequence.speculation.guess
            else []
            for sequence, count in zip(sequences, counts, strict=True)
        ]

    def declined(self) -> None:
        """Nothing: what it would have guessed is judged all the same."""
