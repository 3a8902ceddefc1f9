"""Scripts for the fake engine and a way to call the application, shared by the server's tests."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

from engine.fake import FakeEngine, Script
from engine.messages import (
    EngineRequest,
    Event,
    Fault,
    Finished,
    FinishReason,
    TokenEvent,
    TokenLogprobs,
)
from protocol.sse import SseDecoder
from server.config import ServerConfig
from server.state import AppState
from tests.server.small_app import byte_tokenizer, client_of, small_state


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text, parse_special=True)


def saying(
    *texts: str,
    reason: FinishReason = "stop",
    fault: Fault | None = None,
    num_cached_tokens: int = 0,
    pause_s: float = 0,
) -> Script:
    """Each text is one event, then the end. With logprobs, token i has -(i + 1) / 8."""

    def script(request: EngineRequest) -> Iterator[Event | float]:
        position = 0
        for text in texts:
            token_ids = ids_of(text)
            logprobs = None
            if request.sampling.logprobs is not None:
                logprobs = [
                    _logprobs(token_id, position + i, request.sampling.logprobs)
                    for i, token_id in enumerate(token_ids)
                ]
            position += len(token_ids)
            yield TokenEvent(request.id, token_ids, logprobs)
            yield pause_s
        yield Finished(
            request.id,
            reason,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_cached_tokens=num_cached_tokens,
            num_output_tokens=position + (reason == "stop"),
            fault=fault,
        )

    return script


def _logprobs(token_id: int, position: int, count: int) -> TokenLogprobs:
    top = [(token_id + i, -(position + 1) / 8 - i) for i in range(count)]
    return TokenLogprobs(token_id, -(position + 1) / 8, top)


def events_of(body: str) -> list[Any]:
    """The decoded events of a stream, [DONE] as a string."""
    events = SseDecoder().feed(body.encode())
    return [event if event == "[DONE]" else json.loads(event) for event in events]


class App:
    """The application around one scripted engine."""

    def __init__(self, *scripts: Script, config: ServerConfig | None = None) -> None:
        """The n-th sequence plays the n-th script, the last one is repeated."""
        self._scripts = list(scripts)
        self.engine = FakeEngine(script=self._play if scripts else None)
        self.state: AppState = small_state(config, self.engine)

    def _play(self, request: EngineRequest) -> Iterable[Event | float]:
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        return script(request)

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with client_of(self.state) as client:
            types = {"content-type": "application/json"}
            return await client.post(path, content=content, headers=types | headers)

    async def chat(self, **fields: object) -> httpx.Response:
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": "org/small", "messages": messages, **fields}
        return await self.post("/v1/chat/completions", body)

    async def chat_events(self, **fields: object) -> list[Any]:
        response = await self.chat(stream=True, **fields)
        assert response.headers["content-type"] == "text/event-stream"
        return events_of(response.text)

    async def complete(self, **fields: object) -> httpx.Response:
        return await self.post("/v1/completions", {"model": "org/small", "prompt": "ab", **fields})

    async def complete_events(self, **fields: object) -> list[Any]:
        return events_of((await self.complete(stream=True, **fields)).text)
