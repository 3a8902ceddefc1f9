"""Who of a queue is alive: those whose beats go on, by the reader's own clock.

No clocks are compared, and time in which Redis could not be asked counts for nobody.
"""

import time
from collections.abc import Callable, Iterable, Mapping

BEAT_S = 0.5
DEAD_S = 3.0  # without a beat
FORGOTTEN_S = 60.0  # after which what is left of the dead may be removed


class Members:
    """What one process has seen of the others' beats."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, int] = {}
        self._changed_s: dict[str, float] = {}
        self._polled_s = clock()

    def update(self, beats: Mapping[str, int]) -> None:
        """Beats as they are in Redis now: member -> a number that grows while it lives."""
        now = self._clock()
        missed_s = now - self._polled_s - 2 * BEAT_S
        self._polled_s = now
        if missed_s > 0:  # nobody could be heard
            self._changed_s = {name: at + missed_s for name, at in self._changed_s.items()}
        for name, number in beats.items():
            if self._beats.get(name) != number:
                self._beats[name] = number
                self._changed_s[name] = now
        for name in [name for name in self._beats if name not in beats]:
            del self._beats[name]  # it has left; who has not been seen for long is dead

    def hear(self, name: str) -> None:
        """Something has come from a member: it lives."""
        self._changed_s[name] = self._clock()

    def silent_s(self, name: str) -> float:
        """For how long nothing has been seen of it; from the first question on if it is new."""
        return self._polled_s - self._changed_s.setdefault(name, self._polled_s)

    def is_dead(self, name: str) -> bool:
        return self.silent_s(name) > DEAD_S

    def alive(self) -> list[str]:
        return [name for name in self._beats if not self.is_dead(name)]

    def forgotten(self) -> list[str]:
        """Those with beats left in Redis who have been dead for long."""
        return [name for name in self._beats if self.silent_s(name) > FORGOTTEN_S]

    def forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._beats.pop(name, None)
            self._changed_s.pop(name, None)
