"""Exactly one log line for each request, whichever way it goes out, and what that line says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog
from starlette.types import Message

from engine.messages import Fault
from protocol.errors import EngineUnavailable, Overloaded
from server.app import create_app
from server.config import ServerConfig
from server.request_record import RequestRecord
from tests.server.scripted_app import App, saying
from tests.server.small_app import client_of

Logs = list[Any]
FOREVER = saying("a", pause_s=60)
SECRET = "a-prompt-nobody-may-see"


@pytest.fixture
def logs() -> Any:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        yield lines


def only_line(logs: Logs) -> dict[str, Any]:
    (line,) = [entry for entry in logs if entry["event"] == "http_request"]
    assert SECRET not in repr(line)
    return dict(line)


def chat_body(**fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": SECRET}]
    return {"model": "alias", "messages": messages, **fields}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_whole_answer(logs: Logs, stream: bool) -> None:
    app = App(saying("ab", "c", num_cached_tokens=2))
    response = await app.post("/v1/chat/completions", chat_body(stream=stream))
    line = only_line(logs)
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["method"], line["path"]) == ("POST", "/v1/chat/completions")
    assert (line["status"], line["outcome"], line["model"]) == (200, "stop", "alias")
    assert (line["cached_tokens"], line["output_tokens"]) == (2, 4)
    assert line["prompt_tokens"] > len(SECRET)
    assert 0 <= line["first_token_ms"] <= line["duration_ms"]
    assert "error_code" not in line


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("internal", "x"), "internal"),
        (Fault("engine_dead", "x"), "engine_unavailable"),
        (Fault("kv_cache_exceeded", "x"), "kv_cache_exceeded"),
    ],
)
async def test_a_fault_of_the_engine(logs: Logs, stream: bool, fault: Fault, code: str) -> None:
    app = App(saying("a", reason="error", fault=fault))
    await app.post("/v1/chat/completions", chat_body(stream=stream))
    line = only_line(logs)
    assert line["outcome"] == code
    if not stream:
        assert line["error_code"] == code


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_request_error"),
        ("/v1/chat/completions", {"model": "none", "messages": []}, 400, "empty_array"),
        ("/v1/completions", {"model": "none", "prompt": "a"}, 404, "model_not_found"),
        ("/nowhere", {}, 404, "unknown_url"),
        ("/v1/models", {}, 405, "method_not_supported"),
    ],
)
async def test_what_is_refused(logs: Logs, path: str, body: object, status: int, code: str) -> None:
    response = await App().post(path, body)
    line = only_line(logs)
    assert (response.status_code, line["status"]) == (status, status)
    assert line["error_code"] == code
    assert "outcome" not in line
    assert response.headers["server-timing"].startswith("total;dur=")
    assert response.headers["x-request-id"] == line["request_id"]


async def test_a_missing_key(logs: Logs) -> None:
    app = App(config=ServerConfig(api_keys=("sk-1",)))
    response = await app.chat()
    line = only_line(logs)
    assert (response.status_code, line["status"]) == (401, 401)
    assert response.headers["x-request-id"] == line["request_id"]
    assert response.headers["server-timing"]


async def test_a_full_queue(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()

    def refuse(begin_within_s: float) -> None:
        raise Overloaded("full")

    monkeypatch.setattr(app.state.admission, "check", refuse)
    await app.chat()
    line = only_line(logs)
    assert (line["status"], line["error_code"], line["refusal"]) == (503, *["overloaded"] * 2)
    page = app.state.metrics.render()[0].decode()
    assert 'qwen_serve_refusals_total{reason="overloaded"} 1.0' in page


async def test_an_error_of_ours(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(app.state.admission, "check", fail)
    await app.chat()
    assert (only_line(logs)["status"], only_line(logs)["error_code"]) == (500, "internal")


@asynccontextmanager
async def begun(
    app: App, stream: bool
) -> AsyncIterator[tuple[asyncio.Task[None], list[Message], Callable[[], None]]]:
    """A request to an engine that says one letter and falls silent; leave by the third."""
    body = json.dumps(chat_body(stream=stream)).encode()
    left = asyncio.Event()
    sent: list[Message] = []
    incoming = iter([{"type": "http.request", "body": body}])

    async def receive() -> Message:
        message = next(incoming, None)
        if message is None:
            await left.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    task = asyncio.create_task(create_app(app.state)(scope, receive, send))
    while not app.engine.requests or (stream and len(sent) < 2):
        await asyncio.sleep(0.001)
    yield task, sent, left.set


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(logs: Logs, stream: bool) -> None:
    async with begun(App(FOREVER), stream) as (task, _, leave):
        leave()
        await task
    line = only_line(logs)
    assert line["outcome"] == "abort"
    assert line["status"] == (200 if stream else 499)


async def test_a_client_that_leaves_while_it_sends(logs: Logs) -> None:
    incoming = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> Message:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        pass

    headers = [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/completions"}
    scope |= {
        "headers": headers,
        "query_string": b"",
        "http_version": "1.1",
        "raw_path": b"/v1/completions",
    }
    await create_app(App().state)(scope, receive, send)
    assert only_line(logs)["status"] == 499


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_server_cancels(logs: Logs, stream: bool) -> None:
    async with begun(App(FOREVER), stream) as (task, _, _leave):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert only_line(logs)["outcome"] == "abort"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_shutdown_ends(logs: Logs, stream: bool) -> None:
    app = App(FOREVER)
    async with begun(app, stream) as (task, _, _leave):
        for generation in list(app.state.live):
            generation.end(EngineUnavailable("The server is shutting down."))
        await task
    line = only_line(logs)
    assert line["outcome"] == "engine_unavailable"
    assert line["status"] == (200 if stream else 503)


async def test_a_trace_that_fails_costs_no_line(logs: Logs) -> None:
    class BadTraces:
        def export(self, record: RequestRecord) -> dict[str, str]:
            raise RuntimeError("a bug")

        def close(self) -> None:
            raise AssertionError

    app = App()
    app.state = replace(app.state, traces=BadTraces())
    with pytest.raises(RuntimeError):
        await app.complete()
    assert only_line(logs)["status"] == 200


async def test_requests_for_the_server_itself_are_logged_too(logs: Logs) -> None:
    async with client_of(App().state) as client:
        for path in ("/livez", "/readyz", "/metrics", "/v1/models"):
            response = await client.get(path)
            assert response.headers["server-timing"].startswith("total;dur=")
            assert logs[-1]["request_id"] == response.headers["x-request-id"]
    assert [line["path"] for line in logs] == ["/livez", "/readyz", "/metrics", "/v1/models"]
