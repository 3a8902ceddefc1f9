"""Speculation under control: drafts as right as a test wants, chosen without a clock."""

import random
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from engine.sequence import Sequence
from engine.speculation.ends import Ends
from engine.speculation.planner import Offer, Planner
from engine.speculation.proposer import Proposer
from engine.speculation.speculator import Speculator


class EagerPlanner(Planner):
    """Takes all that is offered."""

    def choose(
        self, offers: Items[Offer], room: int, draft_seconds: Callable[[int], float]
    ) -> list[int]:
        counts = []
        for offer in offers:
            counts.append(min(len(offer), room))
            room -= counts[-1]
        return counts


class OracleProposer(Proposer):
    """Knows what comes next, and says something else now and then."""

    def __init__(
        self,
        what_follows: Callable[[Sequence, int], list[int]],
        vocab_size: int,
        *,
        seed: int = 0,
        error_rate: float = 0.3,
    ) -> None:
        self._what_follows = what_follows
        self._vocab_size = vocab_size
        self._random = random.Random(seed)
        self._error_rate = error_rate

    def prepare(self, sequences: Items[Sequence]) -> None:
        pass

    def offer(self, sequence: Sequence, max_drafts: int) -> Offer:
        return [1.0] * self._random.randint(0, max_drafts)

    def seconds(self, num_sequences: int, num_drafts: int) -> float:
        return 0.0

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        return [
            [self._garbled(token_id) for token_id in self._what_follows(sequence, count)[:count]]
            for sequence, count in zip(sequences, counts, strict=True)
        ]

    def declined(self) -> None:
        pass

    def _garbled(self, token_id: int) -> int:
        if self._random.random() < self._error_rate:
            return self._random.randrange(self._vocab_size)
        return token_id


def eager(
    proposer: Proposer,
    *,
    max_drafts: int = 5,
    max_model_len: int = 48,
    eos_token_ids: Iterable[int] = (),
) -> Speculator:
    """Drafts whenever it can. Its clock stands still."""
    ends = Ends(eos_token_ids, max_model_len)
    return Speculator(proposer, EagerPlanner(), ends, max_drafts, clock=lambda: 0.0)
