"""server/gate.py: what a worker answers before its model is there, after, and when it is to end."""

import httpx
import pytest
import structlog
from starlette.responses import PlainTextResponse

from engine.fake import FakeEngine
from server.gate import Gate
from server.metrics import Metrics


def new_gate() -> Gate:
    return Gate(Metrics("m", FakeEngine()))


async def get(gate: Gate, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=gate)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 503), ("/health", 503), ("/v1/models", 503)]
)
async def test_before_it_is_open(path: str, status: int) -> None:
    response = await get(new_gate(), path)
    assert response.status_code == status
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert response.headers["cache-control"] == "no-store"
    assert response.json()


async def test_the_api_says_why_as_openai_would() -> None:
    body = (await get(new_gate(), "/v1/models")).json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "loading" in body["error"]["message"]


async def test_once_open_everything_goes_through() -> None:
    gate = new_gate()
    gate.open(PlainTextResponse("real"))
    for path in ("/livez", "/readyz", "/v1/models"):
        assert (await get(gate, path)).text == "real"


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 503), ("/health", 503), ("/v1/models", 503)]
)
async def test_once_closed(path: str, status: int) -> None:
    gate = new_gate()
    gate.open(PlainTextResponse("real"))
    gate.close()
    response = await get(gate, path)
    assert response.status_code == status
    assert response.headers["connection"] == "close"
    if status == 503:
        assert response.headers["retry-after"] == "1"
        assert "shutting down" in response.text
    assert (await get(gate, "/metrics")).text == "real"


@pytest.mark.parametrize(("is_closed", "reason"), [(False, "loading"), (True, "draining")])
async def test_those_who_are_turned_away_are_logged_and_counted(
    is_closed: bool, reason: str
) -> None:
    metrics = Metrics("m", FakeEngine())
    gate = Gate(metrics)
    if is_closed:
        gate.close()
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        responses = [await get(gate, path) for path in ("/v1/models", "/livez", "/readyz")]
    for response, line in zip(responses, logs, strict=True):
        assert response.headers["x-request-id"] == line["request_id"]
        assert response.headers["server-timing"].startswith("total;dur=")
        assert line["status"] == response.status_code
    assert (logs[0]["error_code"], logs[0]["refusal"]) == ("engine_unavailable", reason)
    assert "refusal" not in logs[2]  # a health check is no request that was refused
    assert f'qwen_serve_refusals_total{{reason="{reason}"}} 1.0' in metrics.render()[0].decode()


async def test_a_websocket_is_not_expected() -> None:
    with pytest.raises(RuntimeError, match="websocket"):
        await new_gate()({"type": "websocket"}, None, None)  # type: ignore[arg-type]
