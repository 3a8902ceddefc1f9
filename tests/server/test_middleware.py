"""Headers, the log line and the last resort, around the real application and around bad ones."""

import re
from typing import Any

import httpx
import pytest
import structlog
from starlette.types import Receive, Scope, Send

from server.app import create_app
from server.middleware import RequestMiddleware
from tests.server.metric_samples import parse, value_of
from tests.server.scripted_app import App
from tests.server.small_app import client_of


async def get(path: str, **headers: str) -> httpx.Response:
    async with client_of(App().state) as client:
        return await client.get(path, headers=headers)


async def test_headers() -> None:
    first, second = await get("/v1/models"), await get("/nowhere")
    for response in (first, second):
        assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
        assert response.headers["openai-version"] == "2020-10-01"
        assert int(response.headers["openai-processing-ms"]) >= 0
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_one_log_line_for_each_request() -> None:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        response = await get("/v1/models/none", **{"x-client-request-id": "mine" * 200})
    (line,) = [entry for entry in logs if entry["event"] == "http_request"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/models/none", 404)
    assert line["client_request_id"] == ("mine" * 200)[:512]
    assert line["duration_ms"] >= 0


async def test_responses_are_counted_by_route() -> None:
    app = App()
    async with client_of(app.state) as client:
        await client.get("/v1/models/alias")
        await client.get("/nowhere/secret")
    text = app.state.metrics.render()[0].decode()
    assert (
        'qwen_serve_http_requests_total{method="GET",route="/v1/models/{model:path}",status="200"}'
        in text
    )
    assert 'route="unknown",status="404"' in text
    assert "secret" not in text


def around(app: Any) -> httpx.AsyncClient:
    wrapped = RequestMiddleware(app, App().state.metrics)
    return httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://test")


async def test_an_unexpected_exception_is_a_500_without_details() -> None:
    async def bad(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret")

    with structlog.testing.capture_logs() as logs:
        async with around(bad) as client:
            response = await client.get("/")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert [entry["event"] for entry in logs] == ["unhandled_error", "http_request"]
    assert logs[1]["status"] == 500


async def test_an_exception_inside_a_response_cuts_the_connection() -> None:
    async def bad(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    async with around(bad) as client:
        with pytest.raises(RuntimeError):
            await client.get("/")


async def test_the_name_of_the_key_is_logged_and_counted() -> None:
    state = App().state

    async def keyed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["qwen.key"] = "team-a"  # as whoever checks keys does
        await create_app(state)(scope, receive, send)

    with structlog.testing.capture_logs() as logs:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(keyed), base_url="http://test"
        ) as client:
            body = {"model": "alias", "prompt": "ab", "max_tokens": 3}
            await client.post("/v1/completions", json=body)
    (line,) = logs
    assert (line["key"], line["output_tokens"]) == ("team-a", 3)
    samples = parse(state.metrics.render()[0])
    assert value_of(samples, "qwen_serve_key_requests_total", key="team-a", status="200") == 1
    assert value_of(samples, "qwen_serve_key_tokens_total", key="team-a", type="output") == 3


async def test_no_label_is_what_a_client_wrote() -> None:
    app = App()
    secret = "written-by-a-client"
    for path in (f"/v1/{secret}", f"/v1/models/{secret}", "/v1/completions"):
        await app.post(path, {"model": secret, "prompt": secret, "user": secret})
    assert secret not in app.state.metrics.render()[0].decode()


async def test_other_scopes_pass() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def unused(*args: object) -> Any:
        raise AssertionError

    await RequestMiddleware(app, App().state.metrics)({"type": "lifespan"}, unused, unused)
    assert seen == ["lifespan"]
