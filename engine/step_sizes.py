"""How many tokens steps compute: a histogram that costs a step a microsecond. No torch."""

from bisect import bisect_left
from collections.abc import Iterable

from engine.messages import STEP_TOKEN_BOUNDS
from engine.sequence import Chunk


class StepSizes:
    """Counts of steps by the smallest bound that they do not exceed, the last without one."""

    def __init__(self) -> None:
        self.counts = [0] * (len(STEP_TOKEN_BOUNDS) + 1)
        self.num_tokens = 0

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Count one step."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        self.counts[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1
        self.num_tokens += num_tokens
