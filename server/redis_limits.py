"""The counters of limits in Redis, shared by all servers and processes that are given its URL.

Each call is one script, so that two servers cannot both take the last place, by Redis' own clock.
A place is held for a minute and renewed: that of a server which was killed comes free by itself.
While Redis cannot be reached each process counts for itself, and says so in the log: a key then has
its limits in each of them, and neither everything nor nothing.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.keys import Limits
from server.limit_store import WINDOW_S, Kind, MemoryLimits, Standing
from server.logging import get_logger

_PREFIX = "qwen-serve:limits:"
_LEASE_S = 60
_RENEW_S = 15
_MAX_CONNECTIONS = 32  # of a process; more calls at a time wait for one
_TIMEOUT_S = 1.0  # of a connection and of an answer
_PAUSE_S = 5.0  # after a failure, so that not every request waits for a Redis that is away

_log = get_logger(__name__)

# KEYS: requests, tokens, leases. ARGV: limits of requests, tokens and concurrency (0 = none), then
# lease, requests to add, tokens to add, "force" to add without asking for room, and the two times
# in seconds. Answers what is used, as texts because Lua's numbers become integers, and what is
# exceeded.
_SCRIPT = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local lease, force, window, hold = ARGV[4], ARGV[7] == 'force', tonumber(ARGV[8]), tonumber(ARGV[9])

local function used(key, limit)
  if limit == 0 then return 0 end
  local bucket = redis.call('HMGET', key, 'used', 'at')
  if not bucket[1] then return 0 end
  return math.max(0, tonumber(bucket[1]) - (now - tonumber(bucket[2])) * limit / window)
end

local function put(key, limit, amount)
  if limit == 0 then return end
  if amount <= 0 then redis.call('DEL', key) return end
  redis.call('HSET', key, 'used', string.format('%.9f', amount), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', key, math.ceil(amount / limit * window) + 1)
end

local limits = {tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])}
local requests, tokens = used(KEYS[1], limits[1]), used(KEYS[2], limits[2])
local more_requests, more_tokens = tonumber(ARGV[5]), tonumber(ARGV[6])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
local exceeded = ''
if not force then
  if more_requests > 0 and limits[3] > 0 and redis.call('ZCARD', KEYS[3]) >= limits[3] then
    exceeded = 'concurrency'
  elseif more_requests > 0 and limits[1] > 0 and requests + more_requests > limits[1] + 1e-6 then
    exceeded = 'requests'
  elseif more_tokens > 0 and limits[2] > 0 and tokens + more_tokens > limits[2] + 1e-6 then
    exceeded = 'tokens'
  end
end
if exceeded == '' then
  requests, tokens = requests + more_requests, math.max(0, tokens + more_tokens)
  if more_requests > 0 then
    put(KEYS[1], limits[1], requests)
    if limits[3] > 0 then
      redis.call('ZADD', KEYS[3], now + hold, lease)
      redis.call('EXPIRE', KEYS[3], hold)
    end
  end
  if more_tokens ~= 0 then put(KEYS[2], limits[2], tokens) end
  if force then redis.call('ZREM', KEYS[3], lease) end
end
return {string.format('%.9f', requests), string.format('%.9f', tokens),
        redis.call('ZCARD', KEYS[3]), exceeded}
"""
_RENEW_SCRIPT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], 'XX', now + tonumber(ARGV[2]), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class RedisLimits:
    """A LimitStore (server/limit_store.py). Used from one event loop."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that is none of Redis'. Connects when it is first used."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # for a connection that was closed while it was idle
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(_SCRIPT)
        self._renew = self._redis.register_script(_RENEW_SCRIPT)
        self._held: dict[str, str] = {}  # lease -> name of its key
        self._local = MemoryLimits()
        self._is_lost = False
        self._is_closed = False
        self._again_at = 0.0  # when Redis is asked again
        self._renewing: asyncio.Task[None] | None = None

    async def enter(self, name: str, limits: Limits, lease: str) -> Standing:
        """See LimitStore."""
        standing = await self._run(name, limits, lease, num_requests=1)
        if standing is None:
            return await self._local.enter(name, limits, lease)
        if standing.exceeded is None:
            self._held[lease] = name
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew_leases())
        return standing

    async def charge(self, name: str, limits: Limits, num_tokens: int) -> Standing:
        """See LimitStore."""
        standing = await self._run(name, limits, "", num_tokens=num_tokens)
        return standing or await self._local.charge(name, limits, num_tokens)

    async def leave(self, name: str, limits: Limits, lease: str, num_tokens: int) -> Standing:
        """See LimitStore."""
        is_held_there = self._held.pop(lease, None) is not None
        standing = None
        if is_held_there:
            standing = await self._run(name, limits, lease, num_tokens=num_tokens, force=True)
        return standing or await self._local.leave(name, limits, lease, num_tokens)

    async def aclose(self) -> None:
        """Disconnect. Places that are still held come free within a minute."""
        self._is_closed = True  # the library may keep a cancellation to itself
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._redis.aclose()

    async def _run(
        self,
        name: str,
        limits: Limits,
        lease: str,
        *,
        num_requests: int = 0,
        num_tokens: int = 0,
        force: bool = False,
    ) -> Standing | None:
        """None when Redis does not answer."""
        if time.monotonic() < self._again_at:
            return None
        arguments: list[str | int | float] = [
            limits.requests_per_minute or 0,
            limits.tokens_per_minute or 0,
            limits.concurrency or 0,
            lease,
            num_requests,
            num_tokens,
            "force" if force else "ask",
            WINDOW_S,
            _LEASE_S,
        ]
        try:
            answer = await cast(Awaitable[Any], self._script(keys=_keys(name), args=arguments))
        except (RedisError, OSError) as exc:
            self._lose(exc)
            return None
        if self._is_lost:
            self._is_lost = False
            _log.info("limits are counted in Redis again")
        requests, tokens, concurrency, exceeded = answer
        kind = cast(Kind, exceeded.decode()) if exceeded else None
        return Standing(float(requests), float(tokens), int(concurrency), kind)

    def _lose(self, exc: Exception) -> None:
        self._again_at = time.monotonic() + _PAUSE_S
        if not self._is_lost:
            self._is_lost = True
            reason = f"{type(exc).__name__}: {exc}"
            _log.error("Redis is lost: each process counts limits for itself", reason=reason)

    async def _renew_leases(self) -> None:
        while not self._is_closed:
            await asyncio.sleep(_RENEW_S)
            for lease, name in list(self._held.items()):
                if self._is_closed or time.monotonic() < self._again_at:
                    break
                try:
                    arguments: list[str | int] = [lease, _LEASE_S]
                    keys = _keys(name)[2:]
                    await cast(Awaitable[Any], self._renew(keys=keys, args=arguments))
                except (RedisError, OSError) as exc:
                    self._lose(exc)


def _keys(name: str) -> list[str]:
    """In braces: what a cluster of Redis keeps together."""
    return [f"{_PREFIX}{{{name}}}:{kind}" for kind in ("requests", "tokens", "leases")]
