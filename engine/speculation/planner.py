"""How many drafts each sequence of a step gets: often none.

A sequence's speed is the tokens that it can expect of a step, by the time that the step takes.
Drafts are chosen so that the product of all speeds is largest: what makes one sequence twice as
fast may not make ten others a tenth slower.

Knows what drafts are likely to be worth (the offers) and what steps take (step_costs.py), not where
drafts come from. Only speed depends on what is chosen here, never a token. Pure Python.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from math import log

from engine.speculation.step_costs import StepCosts

Offer = Items[float]  # how likely draft 1, 2, ... is accepted, with all before it

_MIN_CHANCE = 0.05  # an offer that is less likely is not looked at
_MIN_GAIN = log(1.05)  # of the speed, on average, or the step stays as it is
_PROMISING = log(1.3)  # gain that drafts would bring if they cost nothing
_FIRST_PATIENCE = 128  # steps that drafts are promising in, and too slow, before that is doubted
_MAX_PATIENCE = 4096


class Planner:
    """Chooses numbers of drafts, and learns from the times of the steps."""

    def __init__(self, costs: StepCosts | None = None) -> None:
        self._costs = costs or StepCosts()
        self._patience = _FIRST_PATIENCE
        self._num_declined = 0

    def choose(
        self, offers: Items[Offer], room: int, draft_seconds: Callable[[int], float]
    ) -> list[int]:
        """A number of drafts for each offer, at most `room` together.

        `draft_seconds`: what it takes to make up to so many drafts for each sequence.
        """
        num_sequences = len(offers)
        chosen = [0] * num_sequences
        gains = _gains(offers)[:room]
        if not gains or not self._costs.knows(num_sequences):
            return chosen
        plain_seconds = self._costs.seconds(num_sequences)
        gain, longest = 0.0, 0
        best_value, best_count = num_sequences * _MIN_GAIN, 0
        for count, (negative_gain, place, _) in enumerate(gains, start=1):
            gain -= negative_gain
            longest = max(longest, place + 1)
            seconds = self._costs.seconds(num_sequences + count) + draft_seconds(longest)
            value = gain - num_sequences * log(seconds / plain_seconds)
            if value > best_value:
                best_value, best_count = value, count
        if not best_count:
            self._decline(num_sequences, gain)
        for _, _, index in gains[:best_count]:
            chosen[index] += 1
        return chosen

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A step of decodes took so long, the making of drafts not counted."""
        self._costs.observe(num_tokens, seconds)

    def _decline(self, num_sequences: int, gain: float) -> None:
        """Drafts cost more than they give. Times change: doubt what is known of them, rarely."""
        if gain < num_sequences * _PROMISING:
            return
        self._num_declined += 1
        if self._num_declined >= self._patience:
            self._num_declined = 0
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
            self._costs.forget_above(num_sequences)


def _gains(offers: Items[Offer]) -> list[tuple[float, int, int]]:
    """What each draft adds to the logarithm of its sequence's speed, the best first: the negative
    gain, its place among the sequence's drafts, the sequence.

    A sequence's drafts gain less and less, so they are in order.
    """
    gains = []
    for index, offer in enumerate(offers):
        tokens = 1.0
        for place, chance in enumerate(offer):
            if chance < _MIN_CHANCE:
                break
            gains.append((-log(1 + chance / tokens), place, index))
            tokens += chance
    gains.sort()
    return gains
