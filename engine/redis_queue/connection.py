"""Connections to Redis that report every failure at once: who uses one knows what to do again."""

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_S = 2.0
ANSWER_S = 5.0  # more than any read blocks
RETRY_S = 0.2


# Typed as Any: redis-py declares every answer as "awaitable or not" of many types.
def connect(url: str) -> Any:
    """For threads."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )


def connect_async(url: str) -> Any:
    """For an event loop."""
    return redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        socket_keepalive=True,
        retry=AsyncRetry(NoBackoff(), 0),
    )
