"""server/http_connection.py: requests one after the other, and TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
import uvicorn
from starlette.types import Receive, Scope, Send

from engine.fake import FakeEngine
from server import http_connection
from server.http_connection import MAX_HEAD_BYTES, connection_class
from server.metrics import Metrics

Address = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how long the body is, after a moment in which a head's time would be over."""
    num_bytes = 0
    while True:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(0.7)
    body = str(num_bytes).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def running(config: uvicorn.Config) -> AsyncIterator[int]:
    """Serve on a free port and yield it."""
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    yield server.servers[0].sockets[0].getsockname()[1]
    await server.shutdown()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(
        answer,
        port=0,
        http=connection_class(Metrics("m", FakeEngine())),
        ws="none",
        lifespan="off",
        log_config=None,
    )
    config.load()
    async with running(config) as port:
        yield port


async def connect(port: int) -> Address:
    return await asyncio.open_connection("127.0.0.1", port)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def reply(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b"\r\n")[0], await reader.readexactly(
        int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    )


async def test_requests_one_after_the_other_with_large_bodies_and_heads(port: int) -> None:
    reader, writer = await connect(port)
    for length in (0, 10, 3 * MAX_HEAD_BYTES, 0):
        writer.write(b"POST / HTTP/1.1\r\nx-a: " + b"a" * 30_000 + b"\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % length + b"b" * length)
        status, body = await reply(reader)
        assert (status, body) == (b"HTTP/1.1 200 OK", str(length).encode())
    await close(writer)


async def test_requests_that_come_in_one_write(port: int) -> None:
    reader, writer = await connect(port)
    writer.write(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc" * 5)
    for _ in range(5):
        assert await reply(reader) == (b"HTTP/1.1 200 OK", b"3")
    await close(writer)


async def test_an_endless_head_is_cut_off_under_tls() -> None:
    authority, trusting = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusting)
    config = uvicorn.Config(
        answer,
        port=0,
        http=connection_class(Metrics("m", FakeEngine())),
        ws="none",
        lifespan="off",
        log_config=None,
    )
    config.load()
    config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(config.ssl)
    async with running(config) as port:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting, server_hostname="localhost"
        )
        writer.write(b"GET / HTTP/1.1\r\nx-a: ")
        num_sent = 0
        with contextlib.suppress(ConnectionError):
            while num_sent < 100 * MAX_HEAD_BYTES:
                writer.write(b"a" * 8000)
                await writer.drain()
                num_sent += 8000
            async with asyncio.timeout(60):
                await reader.read()
        writer.transport.abort()


async def test_neither_an_answer_nor_what_comes_after_it_is_cut_off(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "HEAD_TIMEOUT_S", 0.5)
    reader, writer = await connect(port)
    for path in (b"/slow", b"/", b"/slow"):
        writer.write(b"GET " + path + b" HTTP/1.1\r\n\r\n")
        assert (await reply(reader))[0] == b"HTTP/1.1 200 OK"
        await asyncio.sleep(0.7)
    await close(writer)
