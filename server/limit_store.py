"""How much of its limits each key has used: the seam, and the counters of one process.

Requests and tokens are buckets that leak: what is used wears off evenly, a whole limit in a minute.
So a limit of 60 gives one more each second, and after a burst a client is told the very moment at
which there is room. Libraries of rate limits count in windows and cannot take back what was charged
too much, which tokens need: their number is known only at the end.
server/redis_limits.py has the counters that several processes share.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from server.keys import Limits

WINDOW_S = 60.0  # in which a full bucket is empty again

Kind = Literal["requests", "tokens", "concurrency"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key has used at one moment; the fractions are what is wearing off.

    Attributes:
        exceeded: the limit that leaves no room for what was asked; nothing of it was charged.
    """

    requests: float
    tokens: float
    concurrency: int
    exceeded: Kind | None = None


class LimitStore(Protocol):
    """Counters by the name of a key. Nothing here raises for a limit."""

    async def enter(self, name: str, limits: Limits, lease: str) -> Standing:
        """Count a request and hold a place for it under the unique name `lease`."""
        ...

    async def charge(self, name: str, limits: Limits, num_tokens: int) -> Standing:
        """Count tokens that are about to be used; all of them or none."""
        ...

    async def leave(self, name: str, limits: Limits, lease: str, num_tokens: int) -> Standing:
        """Give the place back and count `num_tokens` more or, if negative, fewer."""
        ...

    async def aclose(self) -> None:
        """Disconnect."""
        ...


class _Bucket:
    """What is used of a limit that wears off."""

    def __init__(self) -> None:
        self._used = 0.0
        self._at = 0.0

    def used(self, limit: int | None, now: float) -> float:
        """Without a limit nothing is used up."""
        if limit is None:
            self._used = 0.0
        self._used = max(0.0, self._used - (now - self._at) * (limit or 0) / WINDOW_S)
        self._at = now
        return self._used

    def add(self, amount: float) -> None:
        """Just after `used`."""
        self._used = max(0.0, self._used + amount)


@dataclass(slots=True)
class _Counters:
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    leases: set[str] = field(default_factory=set)


class MemoryLimits:
    """The LimitStore of a server that has one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counters: defaultdict[str, _Counters] = defaultdict(_Counters)

    async def enter(self, name: str, limits: Limits, lease: str) -> Standing:
        """See LimitStore."""
        counters = self._counters[name]
        standing = self._standing(counters, limits)
        exceeded: Kind | None = None
        if limits.concurrency is not None and standing.concurrency >= limits.concurrency:
            exceeded = "concurrency"
        elif not has_room(standing.requests, 1, limits.requests_per_minute):
            exceeded = "requests"
        else:
            counters.requests.add(1)
            counters.leases.add(lease)
        return self._standing(counters, limits, exceeded)

    async def charge(self, name: str, limits: Limits, num_tokens: int) -> Standing:
        """See LimitStore."""
        counters = self._counters[name]
        standing = self._standing(counters, limits)
        if not has_room(standing.tokens, num_tokens, limits.tokens_per_minute):
            return self._standing(counters, limits, "tokens")
        counters.tokens.add(num_tokens)
        return self._standing(counters, limits)

    async def leave(self, name: str, limits: Limits, lease: str, num_tokens: int) -> Standing:
        """See LimitStore."""
        counters = self._counters[name]
        counters.leases.discard(lease)
        self._standing(counters, limits)  # up to now
        counters.tokens.add(num_tokens)
        return self._standing(counters, limits)

    async def aclose(self) -> None:
        """Nothing to disconnect."""

    def _standing(
        self, counters: _Counters, limits: Limits, exceeded: Kind | None = None
    ) -> Standing:
        now = self._clock()
        return Standing(
            requests=counters.requests.used(limits.requests_per_minute, now),
            tokens=counters.tokens.used(limits.tokens_per_minute, now),
            concurrency=len(counters.leases),
            exceeded=exceeded,
        )


def has_room(used: float, amount: int, limit: int | None) -> bool:
    """Whether a bucket takes `amount` more; a part in a million is forgiven to the arithmetic."""
    return limit is None or used + amount <= limit + 1e-6
