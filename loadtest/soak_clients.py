"""What clients do to a server that is to run for ever: ask well, ask badly, leave, read slowly.

Used by loadtest/soak.py. Every kind says what it expects; anything else is a problem.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.chaos import ask
from loadtest.chaos_requests import requests
from loadtest.client import Endpoint
from loadtest.workloads import CHAT_PROMPTS, words

_MAX_PROBLEMS = 20  # that are kept
_CHAT = "/chat/completions"


@dataclass(slots=True)
class Tally:
    """What came of it."""

    ended: Counter[str] = field(default_factory=Counter)  # by kind
    num_refused: int = 0  # 503 with Retry-After: expected under load
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def num_requests(self) -> int:
        return self.ended.total()

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text[:300])


class Clients:
    """So many at a time, each doing one thing after the other."""

    def __init__(self, endpoint: Endpoint, model: str, seed: int) -> None:
        self.tally = Tally()
        self._endpoint = endpoint
        self._model = model
        self._generator = random.Random(seed)
        self._shared = requests(seed, 40)
        self._kinds: dict[str, tuple[int, Callable[[httpx.AsyncClient], Awaitable[None]]]] = {
            "stream": (8, self._stream),
            "whole": (3, self._whole),
            "new schema": (2, self._new_schema),
            "leaves the stream": (4, self._leave_stream),
            "leaves before the answer": (2, self._leave_early),
            "reads slowly": (1, self._read_slowly),
            "is wrong": (4, self._is_wrong),
            "breaks off its request": (1, self._break_off),
            "tokenizes": (2, self._tokenize),
            "connects anew": (1, self._connect_anew),
        }

    async def run(self, num_clients: int, seconds: float) -> None:
        """Returns once nothing is under way any more."""
        limits = httpx.Limits(max_connections=None)
        ends_at = asyncio.get_running_loop().time() + seconds
        async with httpx.AsyncClient(
            base_url=self._endpoint.url, timeout=600.0, limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(*(self._go_on(client, ends_at) for _ in range(num_clients)))

    async def _go_on(self, client: httpx.AsyncClient, ends_at: float) -> None:
        names = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        while asyncio.get_running_loop().time() < ends_at:
            (name,) = self._generator.choices(names, weights)
            try:
                await self._kinds[name][1](client)
            except httpx.HTTPError as exc:
                self.tally.problem(f"{name}: {type(exc).__name__}: {exc}")
            self.tally.ended[name] += 1

    # what they do

    async def _stream(self, client: httpx.AsyncClient) -> None:
        path, body = self._request()
        reply = await ask(client, self._model, (path, body))
        if reply.error.startswith("status 503") and "overloaded" in reply.error:
            await self._refused()
        elif reply.error:
            self.tally.problem(f"stream: {reply.error}")
        elif any(choice.finish_reason is None for choice in reply.choices.values()):
            self.tally.problem("stream: a choice has no end")

    async def _whole(self, client: httpx.AsyncClient) -> None:
        path, body = self._request()
        body = {key: value for key, value in body.items() if not key.startswith("stream")}
        await self._expect(await client.post(path, json={"model": self._model, **body}), 200)

    async def _new_schema(self, client: httpx.AsyncClient) -> None:
        """A grammar that no cache has."""
        names = [f"{word}{self._number(10**6)}" for word in words(self._generator, 3).split()]
        schema = {
            "type": "object",
            "properties": {name: {"type": "integer"} for name in names},
            "required": names,
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        body = {"messages": self._messages(20), "response_format": form, "max_tokens": 60}
        await self._expect(await client.post(_CHAT, json={"model": self._model, **body}), 200)

    async def _leave_stream(self, client: httpx.AsyncClient) -> None:
        body = {"messages": self._messages(60), "max_tokens": 800, "ignore_eos": True}
        num_events = self._number(12)
        async with client.stream(
            "POST", _CHAT, json={"model": self._model, "stream": True, **body}
        ) as response:
            if response.status_code != 200:
                await response.aread()
                await self._expect(response, 200)
                return
            async for _ in response.aiter_lines():
                num_events -= 1
                if num_events <= 0:
                    return

    async def _leave_early(self, client: httpx.AsyncClient) -> None:
        body = {"model": self._model, "messages": self._messages(200), "ignore_eos": True}
        asking = asyncio.create_task(client.post(_CHAT, json={**body, "n": 2, "max_tokens": 800}))
        await asyncio.wait((asking,), timeout=self._generator.uniform(0.0, 1.0))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def _read_slowly(self, client: httpx.AsyncClient) -> None:
        body = {"messages": self._messages(10), "max_tokens": 30, "logprobs": True}
        async with client.stream(
            "POST", _CHAT, json={"model": self._model, "stream": True, "top_logprobs": 20, **body}
        ) as response:
            if response.status_code != 200:
                await response.aread()
                await self._expect(response, 200)
                return
            async for _ in response.aiter_raw(1024):
                await asyncio.sleep(self._generator.uniform(0.0, 0.2))

    async def _is_wrong(self, client: httpx.AsyncClient) -> None:
        status, path, body = self._generator.choice(self._wrongs())
        response = await client.post(
            path, content=body, headers={"content-type": "application/json"}
        )
        await self._expect(response, status)

    def _wrongs(self) -> list[tuple[int, str, bytes]]:
        chat = {"model": self._model, "messages": self._messages(5)}
        pattern = {"structured_outputs": {"regex": "(" * 200}}
        schema = {"name": "a", "schema": {"type": "object", "properties": {"a": {"type": "b"}}}}
        form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        return [
            (400, _CHAT, b'{"model": '),
            (400, _CHAT, b"[" * 5000),
            (400, _CHAT, json.dumps({**chat, "temperature": 9}).encode()),
            (400, _CHAT, json.dumps({**chat, f"unknown{self._number(10**6)}": 1}).encode()),
            (400, _CHAT, json.dumps({**chat, "max_tokens": 10**6}).encode()),
            (400, _CHAT, json.dumps({**chat, **pattern}).encode()),
            (400, _CHAT, json.dumps({**chat, **form}).encode()),
            (400, _CHAT, json.dumps({**chat, "messages": self._messages(9000)}).encode()),
            (404, _CHAT, json.dumps({**chat, "model": f"m{self._number(10**6)}"}).encode()),
            (404, f"/nothing{self._number(10**6)}", b"{}"),
            (405, "/models", b"{}"),
        ]

    async def _break_off(self, client: httpx.AsyncClient) -> None:
        """A connection that ends within the head, the body or the answer."""
        body = json.dumps({"model": self._model, "messages": self._messages(30)}).encode()
        host = f"{self._endpoint.host}:{self._endpoint.port}"
        head = f"POST /v1{_CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        whole = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
        _, writer = await asyncio.open_connection(self._endpoint.host, self._endpoint.port)
        writer.write(whole[: self._number(len(whole) + 1)])
        await asyncio.sleep(self._generator.uniform(0.0, 0.1))
        writer.transport.abort()

    async def _tokenize(self, client: httpx.AsyncClient) -> None:
        root = str(client.base_url).rstrip("/").removesuffix("/v1")
        body = {"prompt": words(self._generator, CHAT_PROMPTS.draw(self._generator))}
        reply = await client.post(f"{root}/tokenize", json=body)
        await self._expect(reply, 200)
        tokens = {"tokens": reply.json()["tokens"]}
        await self._expect(await client.post(f"{root}/detokenize", json=tokens), 200)

    async def _connect_anew(self, client: httpx.AsyncClient) -> None:
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as another:
            await self._expect(await another.get("/models"), 200)

    # how they do it

    def _request(self) -> tuple[str, dict[str, Any]]:
        """Half of them have been asked before, so that the prefix cache has work to do."""
        if self._generator.random() < 0.5:
            return self._generator.choice(self._shared)
        return self._generator.choice(requests(self._generator.getrandbits(31), 10))

    def _messages(self, num_words: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": words(self._generator, num_words)}]

    def _number(self, below: int) -> int:
        return self._generator.randrange(below)

    async def _expect(self, response: httpx.Response, status: int) -> None:
        if response.status_code == 503 and "retry-after" in response.headers:
            await self._refused()
        elif response.status_code != status:
            request = response.request
            asked = request.content[:150] if request.method == "POST" else b""
            self.tally.problem(
                f"{request.url.path} {asked!r}: {response.status_code} in place of {status}: "
                f"{response.text[:150]}"
            )

    async def _refused(self) -> None:
        self.tally.num_refused += 1
        await asyncio.sleep(self._generator.uniform(0.1, 0.5))
