"""A key's limits, kept for one request from its arrival to its end, however that comes.

Pure ASGI behind server/auth.py, which says what the limits are; server/limit_store.py counts. A
request is charged when it arrives and its tokens before the engine gets it, by an estimate that is
settled when the engine is done with it. Only POST counts: looking at models is free.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol
from uuid import uuid4

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.messages import EngineRequest
from protocol.errors import RateLimited, TokensLimited
from protocol.usage import Usage
from server.auth import KEY, LIMITS
from server.errors import error_response
from server.keys import NO_LIMITS, Limits
from server.limit_store import WINDOW_S, LimitStore, Standing
from server.retry_after import go_duration, retry_headers

RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{kind}"
    for kind in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)

_LEASE = "qwen.lease"
_MAX_ASSUMED_TOKENS = 1024  # of an answer: few are as long as they may be
_FIRST_DURATION_S = 1.0  # of a request, while none has ended


class Running(Protocol):
    """A generation (server/generation.py) as its lease sees it."""

    @property
    def has_ended(self) -> bool:
        """Whether the engine is done with it."""
        ...

    def usage(self) -> Usage:
        """Counts so far."""
        ...


class LimitsMiddleware:
    """Answers 429 to a request that its key has no room for."""

    def __init__(self, app: ASGIApp, store: LimitStore) -> None:
        self._app = app
        self._store = store
        self._durations = _Durations()
        self._leaving: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits: Limits = scope.get(LIMITS, NO_LIMITS)
        if limits == NO_LIMITS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        lease = Lease(self._store, scope[KEY], limits, self._durations)

        async def send_with_headers(message: Message) -> None:
            await lease.leave_if_over()
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(lease.headers())
            await send(message)

        try:
            await lease.enter()
        except RateLimited as error:
            await error_response(error)(scope, receive, send_with_headers)
            return
        scope[_LEASE] = lease
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            task = lease.leave()
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)


class Unlimited:
    """The lease of a request without limits."""

    async def charge(self, requests: Sequence[EngineRequest], candidates_per_prompt: int) -> None:
        """Nothing is counted."""

    def attach(self, generation: Running) -> None:
        """Nothing is settled."""


class Lease(Unlimited):
    """One request of a key with limits."""

    def __init__(
        self, store: LimitStore, name: str, limits: Limits, durations: "_Durations"
    ) -> None:
        self._store = store
        self._name = name
        self._limits = limits
        self._durations = durations
        self._id = uuid4().hex
        self._standing = Standing(0, 0, 0)
        self._num_charged = 0
        self._generation: Running | None = None
        self._is_held = False
        self._began_at = 0.0
        self._leaving: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Raises RateLimited."""
        self._began_at = asyncio.get_running_loop().time()
        self._standing = await self._store.enter(self._name, self._limits, self._id)
        if self._standing.exceeded == "concurrency":
            raise self._too_many_at_a_time()
        if self._standing.exceeded == "requests":
            limit = self._limits.requests_per_minute
            assert limit is not None
            message, headers = self._reached(
                "requests per min (RPM)", limit, self._standing.requests, 1
            )
            raise RateLimited(message, headers=headers)
        self._is_held = True

    async def charge(self, requests: Sequence[EngineRequest], candidates_per_prompt: int) -> None:
        """Count the tokens that `requests` may take. Raises TokensLimited."""
        limit = self._limits.tokens_per_minute
        if limit is None:
            return
        num_prompt = sum(len(one.prompt_token_ids) for one in requests[::candidates_per_prompt])
        if num_prompt > limit:
            raise TokensLimited(
                f"Request too large for key `{self._name}` on tokens per min (TPM): Limit {limit}, "
                f"Requested {num_prompt}. The input must be reduced in order to run successfully.",
                headers={"x-should-retry": "false"},
            )
        num_output = sum(min(one.sampling.max_tokens, _MAX_ASSUMED_TOKENS) for one in requests)
        asked = min(num_prompt + num_output, limit)  # what is more than a minute's is owed
        self._standing = await self._store.charge(self._name, self._limits, asked)
        if self._standing.exceeded == "tokens":
            message, headers = self._reached(
                "tokens per min (TPM)", limit, self._standing.tokens, asked
            )
            raise TokensLimited(message, headers=headers)
        self._num_charged = asked

    def attach(self, generation: Running) -> None:
        """Settle by what this will have used."""
        self._generation = generation

    async def leave_if_over(self) -> None:
        """Leave before the end is sent: the client's next request may come right behind it."""
        if self._generation is None or self._generation.has_ended:
            await asyncio.shield(self.leave())

    def leave(self) -> "asyncio.Task[None]":
        """Give the place back and settle the tokens, once.

        In a task, as whoever calls it may be in the middle of being cancelled.
        """
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
        return self._leaving

    async def _leave(self) -> None:
        if not self._is_held:
            return
        owed = -self._num_charged
        if self._generation is not None:
            self._durations.add(self._name, asyncio.get_running_loop().time() - self._began_at)
            owed += self._generation.usage().total_tokens
        self._standing = await self._store.leave(self._name, self._limits, self._id, owed)

    def headers(self) -> dict[str, str]:
        """What is left, as OpenAI's API says it."""
        headers: dict[str, str] = {}
        for kind, limit, used in (
            ("requests", self._limits.requests_per_minute, self._standing.requests),
            ("tokens", self._limits.tokens_per_minute, self._standing.tokens),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{kind}"] = str(limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(limit - used)))
                headers[f"x-ratelimit-reset-{kind}"] = go_duration(used * WINDOW_S / limit)
        return headers

    def _reached(
        self, what: str, limit: int, used: float, asked: int
    ) -> tuple[str, dict[str, str]]:
        """Message and headers."""
        wait_s = (used + asked - limit) * WINDOW_S / limit
        message = (
            f"Rate limit reached for key `{self._name}` on {what}: Limit {limit}, "
            f"Used {math.ceil(used)}, Requested {asked}. "
            f"Please try again in {go_duration(wait_s)}."
        )
        return message, retry_headers(wait_s)

    def _too_many_at_a_time(self) -> RateLimited:
        limit = self._limits.concurrency
        assert limit is not None
        wait_s = self._durations.mean_s(self._name) / limit
        return RateLimited(
            f"Rate limit reached for key `{self._name}` on requests at a time: Limit {limit}, "
            f"Used {self._standing.concurrency}, Requested 1. "
            f"Please try again in {go_duration(wait_s)}.",
            headers=retry_headers(wait_s),
        )


class _Durations:
    """How long requests of each key take, recent ones above all."""

    def __init__(self) -> None:
        self._means_s: dict[str, float] = {}

    def add(self, name: str, duration_s: float) -> None:
        mean_s = self._means_s.get(name, duration_s)
        self._means_s[name] = mean_s + (duration_s - mean_s) / 8

    def mean_s(self, name: str) -> float:
        return self._means_s.get(name, _FIRST_DURATION_S)


_UNLIMITED = Unlimited()


def lease_of(request: Request) -> Unlimited:
    """The lease of a request, whether it has limits or not."""
    lease: Unlimited = request.scope.get(_LEASE, _UNLIMITED)
    return lease
