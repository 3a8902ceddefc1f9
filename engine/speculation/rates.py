"""How often guesses are right, by kind of guess: counts that forget slowly.

What is known of a sequence is weighed against what is known of all. Pure Python.
"""

from collections.abc import Sequence as Items

_WEIGHT = 4.0  # trials of its own that count as much as what is known of all


class Rates:
    """Right guesses and all guesses of each kind, older ones counting less and less."""

    __slots__ = ("_hits", "_keep", "_trials")

    def __init__(self, num_kinds: int, keep: float) -> None:
        """`keep`: what is left of a count when the next of its kind comes."""
        self._keep = keep
        self._hits = [0.0] * num_kinds
        self._trials = [0.0] * num_kinds

    def record(self, kind: int, is_hit: bool) -> None:
        """Count one guess."""
        self._hits[kind] = self._hits[kind] * self._keep + is_hit
        self._trials[kind] = self._trials[kind] * self._keep + 1

    def estimate(self, kind: int, expected: float) -> float:
        """The part of guesses that are right, where `expected` is what others say of it."""
        return (self._hits[kind] + _WEIGHT * expected) / (self._trials[kind] + _WEIGHT)

    def forget(self) -> None:
        """Start anew."""
        self._hits = [0.0] * len(self._hits)
        self._trials = [0.0] * len(self._trials)


class Experience:
    """What is known of the guesses of all sequences."""

    __slots__ = ("_expected", "rates")

    def __init__(self, expected: Items[float]) -> None:
        """`expected`: of each kind, before anything is known."""
        self._expected = expected
        self.rates = Rates(len(expected), keep=0.995)

    def estimate(self, own: Rates, kind: int) -> float:
        """How likely a guess of a sequence, whose rates are `own`, is right."""
        return own.estimate(kind, self.rates.estimate(kind, self._expected[kind]))

    def new_rates(self) -> Rates:
        """For a sequence."""
        return Rates(len(self._expected), keep=0.9)
