"""One streamed request to an OpenAI-compatible server, with a clock at every piece of text.

Written for little CPU, as it runs beside the server that it measures: one connection for each
request, httptools for HTTP, msgspec for the events, no objects of a client library in between.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import msgspec

_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. The clock is time.perf_counter."""

    started: float
    finished: float
    text_times: tuple[float, ...]  # one for each event that brought text
    num_prompt_tokens: int
    num_output_tokens: int
    error: str = ""  # why the answer is not whole; empty when it is

    @property
    def first_token_s(self) -> float:
        """From sending the request; to the end where an answer has no text, as half a character."""
        return (self.text_times[0] if self.text_times else self.finished) - self.started

    @property
    def gaps_s(self) -> list[float]:
        """Between one piece of text and the next."""
        return [b - a for a, b in zip(self.text_times, self.text_times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server's API is: `prefix` comes before /chat/completions, as in /v1."""

    host: str
    port: int
    prefix: str = "/v1"

    @classmethod
    def of(cls, url: str) -> "Endpoint":
        """Of a URL like http://127.0.0.1:8000/v1. Raises ValueError for any that is not http."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL like http://127.0.0.1:8000/v1")
        return cls(parts.hostname, parts.port or 80, parts.path.rstrip("/"))

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.prefix}"


async def ask(
    endpoint: Endpoint,
    path: str,
    body: Mapping[str, object],
    *,
    num_tokens: int,
    timeout_s: float = 900.0,
) -> Answer:
    """Post `body` to `path` and read the stream to its end. Never raises for what a server does.

    `body` must ask for a stream with usage; `num_tokens` is what the answer must have.
    """
    stream = _Stream()
    loop = asyncio.get_running_loop()
    payload = msgspec.json.encode(body)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await loop.create_connection(
                lambda: stream, endpoint.host, endpoint.port
            )
            started = time.perf_counter()
            transport.write(_head(endpoint, path, len(payload)) + payload)
            try:
                await stream.closed
            finally:
                transport.close()
    except (OSError, TimeoutError) as exc:
        stream.error = stream.error or f"{type(exc).__name__}: {exc}".rstrip(": ")
    usage = stream.usage
    return Answer(
        started,
        time.perf_counter(),
        tuple(stream.text_times),
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        stream.error or _problem(stream, num_tokens),
    )


def _head(endpoint: Endpoint, path: str, num_bytes: int) -> bytes:
    return (
        f"POST {endpoint.prefix}{path} HTTP/1.1\r\nhost: {endpoint.host}:{endpoint.port}\r\n"
        "content-type: application/json\r\naccept: text/event-stream\r\n"
        f"content-length: {num_bytes}\r\nconnection: close\r\n\r\n"
    ).encode()


def _problem(stream: "_Stream", num_tokens: int) -> str:
    if stream.status != 200:
        return f"status {stream.status}: {bytes(stream.buffer[:300]).decode(errors='replace')}"
    if not stream.is_done:
        return f"the stream broke off after {len(stream.text_times)} pieces"
    if stream.usage is None:
        return "no usage"
    if stream.usage.completion_tokens != num_tokens:
        return f"{stream.usage.completion_tokens} tokens in place of {num_tokens}"
    return ""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None  # of a chat
    text: str | None = None  # of a completion

    @property
    def has_text(self) -> bool:
        if self.delta is not None:
            return bool(self.delta.content or self.delta.reasoning_content)
        return bool(self.text)


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Event)


@dataclass(slots=True, eq=False)
class _Stream(asyncio.Protocol):
    """Reads one response: HTTP by httptools, then events separated by empty lines."""

    status: int = 0
    error: str = ""
    is_done: bool = False
    usage: _Usage | None = None
    text_times: list[float] = field(default_factory=list)
    buffer: bytearray = field(default_factory=bytearray)
    closed: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _now: float = 0.0
    _parser: "httptools.HttpResponseParser" = field(init=False)

    def __post_init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    # of asyncio

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.DecodeError) as exc:
            self.error = self.error or f"{type(exc).__name__}: {exc.__context__ or exc}"
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.is_done:
            self.error = self.error or f"{type(exc).__name__}: {exc}"
        self._finish()

    # of httptools

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.buffer += body
        if self.status != 200:
            return
        if b"\r" in body:
            self.buffer = self.buffer.replace(b"\r\n", b"\n")
        *events, rest = self.buffer.split(b"\n\n")
        for event in events:
            self._read(bytes(event))
        self.buffer = rest

    def on_message_complete(self) -> None:
        self._finish()

    def _read(self, event: bytes) -> None:
        payload = event.strip()
        if payload.startswith(b"error:"):  # llama-server's own
            self.error = payload.decode(errors="replace")
        if not payload.startswith(b"data:"):  # a comment that keeps the connection open
            return
        payload = payload[5:].strip()
        if payload == _DONE:
            self.is_done = True
            return
        chunk = _decoder.decode(payload)
        if bytes(chunk.error) != b"null":
            self.error = bytes(chunk.error).decode(errors="replace")
        if chunk.usage is not None:
            self.usage = chunk.usage
        if any(choice.has_text for choice in chunk.choices):
            self.text_times.append(self._now)

    def _finish(self) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):
            self.closed.set_result(None)
