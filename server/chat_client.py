"""A small client of any OpenAI-compatible chat API, for the terminal (server/chat_session.py).

Speaks HTTP and server-sent events; knows nothing about terminals.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import httpx

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 600.0  # a long prompt on a slow machine is silent for minutes


class ChatError(Exception):
    """The server could not be reached or answered with an error; one line for the user."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, or of the reasoning that some servers send before it."""

    text: str
    is_reasoning: bool = False


class ChatClient:
    """One connection to a server; a context manager."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        self._http = httpx.Client(headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def first_model(self) -> str:
        """The id of the first model the server lists. Raises ChatError."""
        try:
            response = self._http.get(f"{self.url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._unreachable(exc) from exc
        _check_status(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as exc:
            raise ChatError(f"{self.url}/models does not list a model") from exc

    def stream(
        self, model: str, messages: Sequence[Message], parameters: Mapping[str, Any]
    ) -> Generator[Delta, None, None]:
        """Ask and yield the answer piece by piece. Raises ChatError.

        Closing the iterator closes the connection, which tells the server to stop.
        """
        body = {
            **parameters,
            "model": model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "stream": True,
        }
        try:
            with self._http.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                _check_status(response)
                yield from _deltas(response.iter_lines())
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._unreachable(exc) from exc

    def _unreachable(self, exc: Exception) -> ChatError:
        return ChatError(f"{self.url} cannot be reached: {exc or type(exc).__name__}")


def _deltas(lines: Iterator[str]) -> Iterator[Delta]:
    """The pieces in a stream of server-sent events."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as exc:
            raise ChatError(f"the server sent an event that is not JSON: {data[:80]}") from exc
        if event.get("error"):
            raise ChatError(_error_message(event))
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            if reasoning:
                yield Delta(reasoning, is_reasoning=True)
            if delta.get("content"):
                yield Delta(delta["content"])
    raise ChatError("the connection ended before the answer did")


def _check_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = _error_message(response.json())
    except (ValueError, AttributeError):
        message = response.text.strip()[:200] or response.reason_phrase
    raise ChatError(f"the server answered {response.status_code}: {message}")


def _error_message(body: Mapping[str, Any]) -> str:
    error = body.get("error") or body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
