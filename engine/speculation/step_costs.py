"""What a step takes, by its number of tokens, learned from the steps that were run.

Only how times relate matters: whether five tokens take longer than one, and by how much. So what
makes all steps slower for a while (longer sequences, others on the machine) is kept apart, as one
factor that follows quickly, and the table changes slowly. What was not measured yet is guessed from
what was, on the low side, so that it is tried. Pure Python.
"""

import bisect
import statistics
from collections import deque

_NUM_LOADS = 5  # newest steps whose median is the factor: a single slow one is not the load
_SHARE = 0.05  # of a new time in the table, once it is settled
_MAX_JUMP = 0.25  # by how much a time then counts as more or less than what was expected
_NUM_FIRST = 3  # times whose least counts: the first of a kind may include a warm-up
_GUESSED_SLOPE = 0.05  # of a token more, in parts of what the known tokens take each


class StepCosts:
    """Times of steps in seconds by number of tokens; neighbours among large numbers are one."""

    def __init__(self) -> None:
        self._keys: list[int] = []  # ascending
        self._means: list[float] = []  # seconds where the load is 1
        self._counts: list[int] = []
        self._load = 1.0
        self._loads: deque[float] = deque(maxlen=_NUM_LOADS)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step took so long."""
        key = _bucket(num_tokens)
        place = bisect.bisect_left(self._keys, key)
        scaled = seconds / self._load
        if place == len(self._keys) or self._keys[place] != key:
            self._keys.insert(place, key)
            self._means.insert(place, scaled)
            self._counts.insert(place, 1)
            return
        mean = self._means[place]
        self._counts[place] += 1
        if self._counts[place] <= _NUM_FIRST:
            self._means[place] = min(mean, scaled)
        elif mean > 0:
            count = self._counts[place]
            share, jump = max(_SHARE, 1 / count), max(_MAX_JUMP, 4 / count)
            change = scaled / mean - 1
            self._means[place] *= 1 + share * min(max(change, -jump), jump)
            self._loads.append(seconds / mean)
            self._load = statistics.median(self._loads)

    def knows(self, num_tokens: int) -> bool:
        """Whether a step of at least so many tokens was measured."""
        return bool(self._keys) and self._keys[-1] >= num_tokens

    def seconds(self, num_tokens: int) -> float:
        """What a step of so many tokens will take; 0 while nothing is known at all."""
        if not self._keys:
            return 0.0
        return self._load * self._scaled_seconds(num_tokens)

    def forget_above(self, num_tokens: int) -> None:
        """Forget what more tokens take, so that it is tried again."""
        place = bisect.bisect_right(self._keys, _bucket(num_tokens))
        del self._keys[place:], self._means[place:], self._counts[place:]

    def _scaled_seconds(self, num_tokens: int) -> float:
        keys, means = self._keys, self._means
        place = bisect.bisect_left(keys, num_tokens)
        if place == 0:  # in proportion: fewer tokens are likely steps without drafts, to be tried
            return means[0] * num_tokens / keys[0]
        if place < len(keys) and keys[place] == num_tokens:
            return means[place]
        if place < len(keys):  # between two that are known
            low, high = keys[place - 1], keys[place]
            part = (num_tokens - low) / (high - low)
            return means[place - 1] + part * (means[place] - means[place - 1])
        slope = _GUESSED_SLOPE * means[-1] / keys[-1]
        if len(keys) > 1:
            slope = max(slope, (means[-1] - means[-2]) / (keys[-1] - keys[-2]))
        return means[-1] + slope * (num_tokens - keys[-1])


def _bucket(count: int) -> int:
    """`count` up to 16, then eight numbers for each power of two."""
    if count <= 16:
        return count
    unit = 1 << (count.bit_length() - 4)
    return -(-count // unit) * unit
