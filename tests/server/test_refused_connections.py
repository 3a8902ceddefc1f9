"""Bytes that are no HTTP: an answer like all others, and a line in the log."""

import asyncio
import json
import socket

import structlog
import uvicorn
from starlette.responses import PlainTextResponse

from engine.fake import FakeEngine
from server.http_connection import connection_class
from server.metrics import Metrics
from tests.server.metric_samples import parse, value_of


async def exchange(port: int, sent: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body; the server must close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def test_what_is_no_http_is_answered_logged_and_counted() -> None:
    metrics = Metrics("m", FakeEngine())
    config = uvicorn.Config(
        PlainTextResponse("good"), http=connection_class(metrics), log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve([listener]))
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            status, headers, body = await exchange(port, b"\x16\x03\x01 not http\r\n\r\n")
        good = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        assert (await exchange(port, good))[2] == b"good"
        server.should_exit = True
        await serving
    assert status == "HTTP/1.1 400 Bad Request"
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert int(headers["content-length"]) == len(body)
    assert headers["server-timing"].startswith("total;dur=")
    (line,) = logs
    assert headers["x-request-id"] == line["request_id"]
    assert (line["status"], line["error_code"]) == (400, "invalid_http")
    samples = parse(metrics.render()[0])
    assert value_of(samples, "qwen_serve_http_requests_total", method="other", status="400") == 1
