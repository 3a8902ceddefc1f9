"""Whether a request is taken in, and when one that is not should come again.

The queue is bounded. Who is refused is told when there will be room for it: behind those who were
told to come before it, at the rate at which sequences have finished since there has been a queue.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from engine.messages import EngineStats
from protocol.errors import Overloaded
from server.retry_after import retry_headers

_WINDOW_S = 30.0  # of which the rate is measured
_SAMPLE_S = 0.5
_DOUBT = 2.0  # who may be served in time after all is taken: the rate is low when a queue begins
_MOST_S = 60.0  # clients of OpenAI's wait no longer


class Admission:
    """Of one server process, for the engine that it talks to."""

    def __init__(
        self,
        engine_stats: Callable[[], EngineStats],
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine_stats = engine_stats
        self._max_waiting = max_waiting
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque()  # when, how many so far
        self._due: deque[float] = deque()  # when those who were refused come again

    def check(self, begin_within_s: float = math.inf) -> None:
        """Raise Overloaded when the queue is full, or much too long for `begin_within_s`."""
        now = self._clock()
        stats = self._engine_stats()
        self._sample(now, stats)
        while self._due and self._due[0] <= now:
            self._due.popleft()
        if stats.num_waiting >= self._max_waiting:
            excess = 1 + stats.num_waiting - self._max_waiting + len(self._due)
            wait_s = min(excess / (self._rate() or 1.0), _MOST_S)
            self._due.append(now + wait_s)
            raise Overloaded(
                "The server has more requests than it can take; try again later.",
                headers=retry_headers(wait_s),
            )
        rate = self._rate()
        if rate is not None and stats.num_waiting / rate > _DOUBT * begin_within_s:
            queue_s = stats.num_waiting / rate
            raise Overloaded(
                f"The request would wait for some {queue_s:.0f} s, longer than the "
                f"{begin_within_s:g} s that its client waits; try again later.",
                headers=retry_headers(min(queue_s - begin_within_s, _MOST_S)),
            )

    def _sample(self, now: float, stats: EngineStats) -> None:
        samples = self._finished
        is_new_engine = bool(samples) and stats.num_finished < samples[-1][1]  # it counts from 0
        if is_new_engine or not stats.num_waiting:  # without a queue a rate is that of the demand
            samples.clear()
        if not samples or now - samples[-1][0] >= _SAMPLE_S:
            samples.append((now, stats.num_finished))
        while len(samples) > 2 and now - samples[1][0] > _WINDOW_S:
            samples.popleft()

    def _rate(self) -> float | None:
        """Sequences that finish in a second, while there is a queue; None: not known yet."""
        (first_at, first), (last_at, last) = self._finished[0], self._finished[-1]
        if last == first:
            return None
        return max((last - first) / max(last_at - first_at, 1e-3), 1 / _MOST_S)
