"""server/gate.py: what a worker answers before its model is there, after, and when it is to end."""

import httpx
import pytest
from starlette.responses import PlainTextResponse

from server.gate import Gate


async def get(gate: Gate, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=gate)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 503), ("/health", 503), ("/v1/models", 503)]
)
async def test_before_it_is_open(path: str, status: int) -> None:
    response = await get(Gate(), path)
    assert response.status_code == status
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert response.headers["cache-control"] == "no-store"
    assert response.json()


async def test_the_api_says_why_as_openai_would() -> None:
    body = (await get(Gate(), "/v1/models")).json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "loading" in body["error"]["message"]


async def test_once_open_everything_goes_through() -> None:
    gate = Gate()
    gate.open(PlainTextResponse("real"))
    for path in ("/livez", "/readyz", "/v1/models"):
        assert (await get(gate, path)).text == "real"


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 503), ("/health", 503), ("/v1/models", 503)]
)
async def test_once_closed(path: str, status: int) -> None:
    gate = Gate()
    gate.open(PlainTextResponse("real"))
    gate.close()
    response = await get(gate, path)
    assert response.status_code == status
    assert response.headers["connection"] == "close"
    if status == 503:
        assert response.headers["retry-after"] == "1"
        assert "shutting down" in response.text
    assert (await get(gate, "/metrics")).text == "real"


async def test_a_websocket_is_not_expected() -> None:
    with pytest.raises(RuntimeError, match="websocket"):
        await Gate()({"type": "websocket"}, None, None)  # type: ignore[arg-type]
