"""What speculation keeps of one sequence between steps: its last guess, and how right it was.

A guess is judged by the tokens that came, whether it was computed with them or not: so it costs
nothing to know that drafts would be right, or that they would not. Pure Python.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

from engine.sequence import Sequence
from engine.speculation.ngram_index import NgramIndex
from engine.speculation.rates import Experience, Rates


class Guess(NamedTuple):
    """Tokens that may come at `position` and behind, each of some kind."""

    position: int
    token_ids: Items[int]
    kinds: Items[int]


@dataclass(slots=True, eq=False)
class Memory:
    """Belongs to one sequence."""

    rates: Rates
    index: NgramIndex
    guess: Guess | None = None

    @classmethod
    def of(cls, sequence: Sequence, experience: Experience) -> "Memory":
        """That of `sequence`, made when it is first asked for; its guess is judged."""
        memory = sequence.speculation
        if memory is None:
            memory = sequence.speculation = cls(experience.new_rates(), NgramIndex())
        if memory.guess is not None:
            memory._judge(memory.guess, sequence.token_ids, experience)
        return memory

    def _judge(self, guess: Guess, token_ids: list[int], experience: Experience) -> None:
        came = token_ids[guess.position : guess.position + len(guess.token_ids)]
        for guessed, kind, token_id in zip(guess.token_ids, guess.kinds, came, strict=False):
            self.rates.record(kind, guessed == token_id)
            experience.rates.record(kind, guessed == token_id)
            if guessed != token_id:  # what was guessed behind it says nothing
                break
        self.guess = None

    def chances(self, kinds: Items[int], experience: Experience) -> list[float]:
        """How likely guesses of these kinds, one behind the other, are right: each with all before
        it.
        """
        chances = []
        chance = 1.0
        for kind in kinds:
            chance *= experience.estimate(self.rates, kind)
            chances.append(chance)
        return chances
