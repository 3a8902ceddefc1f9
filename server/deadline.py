"""How long a client waits, by its own words, and what that means for its request.

`x-request-timeout: SECONDS` is for the whole answer. By `x-stainless-read-timeout` the SDK says
for how long it waits for the next bytes: of a whole answer that is all of it, of a stream the first
event (behind that a client that has given up is gone, and the server sees that at once).
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers

from protocol.errors import DeadlineExceeded, InvalidRequest
from protocol.validation import MAX_QUOTED

TIMEOUT_HEADER = "x-request-timeout"
SDK_HEADER = "x-stainless-read-timeout"

# The SDK's own timeout is what its users expect, and comes first where it can be seen from here
# that the SDK is gone; a proxy may hide that.
_GRACE_S = 1.0
_MAX_S = 7 * 24 * 3600.0  # longer than a client waits, and no timer's overflow


class Endable(Protocol):
    """A generation (server/generation.py) as a deadline sees it."""

    def end(self, error: Exception) -> None:
        """Let it fail with `error` once what has arrived is read."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call this when it is closed, however that comes."""
        ...


class Deadline:
    """Of one request; its clock runs from the moment it is made. Used in an event loop."""

    def __init__(self, whole_s: float = math.inf, read_s: float = math.inf) -> None:
        """`read_s`: how long the client waits for bytes; a whole answer's come all at its end."""
        self._whole_s = whole_s
        self._read_s = read_s
        self._began_at = asyncio.get_running_loop().time()
        self._first: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, headers: Headers) -> "Deadline":
        """Raises InvalidRequest for a time of ours that is none."""
        whole_s, read_s = headers.get(TIMEOUT_HEADER), headers.get(SDK_HEADER)
        if whole_s is not None and _seconds(whole_s) is None:
            raise InvalidRequest(
                f"Invalid header '{TIMEOUT_HEADER}': expected a number of seconds above 0, but got "
                f"'{whole_s[:MAX_QUOTED]}' instead.",
                code="invalid_value",
            )
        return cls(_seconds(whole_s) or math.inf, _seconds(read_s) or math.inf)

    @property
    def begin_within_s(self) -> float:
        """When its first token must be there for anybody to see it."""
        return min(self._whole_s, self._read_s)

    def watch(self, generation: Endable, *, stream: bool) -> None:
        """End `generation` when nobody waits for it any more."""
        read_s = self._read_s + _GRACE_S
        whole_s = self._whole_s if stream else min(self._whole_s, read_s)
        if whole_s < math.inf:
            generation.on_close(self._end_at(whole_s, generation).cancel)
        if stream and read_s < whole_s:
            self._first = self._end_at(read_s, generation)
            generation.on_close(self._first.cancel)

    def has_begun(self) -> None:
        """The first event of a stream is there."""
        if self._first is not None:
            self._first.cancel()

    def _end_at(self, limit_s: float, generation: Endable) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_at(
            self._began_at + limit_s, generation.end, _exceeded()
        )


def _exceeded() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The request was not finished in the time for which its client waits.",
        headers={"x-should-retry": "false"},
    )


def _seconds(text: str | None) -> float | None:
    """None for what is no time."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return min(seconds, _MAX_S) if seconds > 0 else None
