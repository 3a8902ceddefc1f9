"""Stop strings in a text stream, one matcher per choice.

The stop that starts first in the whole text wins; of those that start together, the one that
completes first (the shortest). The result does not depend on how the text is split.
"""

from collections.abc import Sequence


class StopMatcher:
    """Incremental search: feed() text, then flush() once if no stop ended it.

    Attributes:
        matched: the stop string that ended the text, or None. Can still be set by flush(), when a
            stop was complete but one that started before it could have come.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        """`include_stop` keeps the stop string at the end of the text.

        Raises:
            ValueError: an empty stop string.
        """
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self.matched: str | None = None
        self._stops = tuple(sorted(set(stops), key=len))  # of equal starts the shortest is found
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._max_held = max(map(len, self._stops), default=1) - 1
        self._include_stop = include_stop
        self._held = ""

    def feed(self, text: str) -> str:
        """Text that is safe to send now; "" once a stop matched."""
        if self.matched is not None or not text:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        match = self._first_match(buffer)
        end = len(buffer) if match is None else match[0]
        for start in range(max(0, len(buffer) - self._max_held), end):
            if buffer[start] in self._first_characters and self._can_become_stop(buffer, start):
                self._held = buffer[start:]
                return buffer[:start]
        self._held = ""
        return buffer if match is None else self._end_at(buffer, *match)

    def flush(self) -> str:
        """The end of the stream: what was held, up to a stop in it."""
        buffer, self._held = self._held, ""
        match = self._first_match(buffer)
        return buffer if match is None else self._end_at(buffer, *match)

    def _first_match(self, buffer: str) -> tuple[int, str] | None:
        found = [(buffer.find(stop), stop) for stop in self._stops]
        return min((f for f in found if f[0] >= 0), key=lambda f: f[0], default=None)

    def _can_become_stop(self, buffer: str, start: int) -> bool:
        tail = buffer[start:]
        return any(stop.startswith(tail) for stop in self._stops)

    def _end_at(self, buffer: str, start: int, stop: str) -> str:
        self.matched = stop
        return buffer[: start + len(stop)] if self._include_stop else buffer[:start]
