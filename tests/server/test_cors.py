"""Pages of other origins: what a browser asks before, and what it lets them read."""

import httpx
import pytest
import structlog

from server.app import create_app
from server.config import ServerConfig
from server.cors import with_cors
from server.gate import Gate
from server.limits import RATE_LIMIT_HEADERS
from server.option_kinds import ORIGIN
from tests.server.small_app import small_state

ORIGIN_OF_PAGE = "https://app.example.com"
CHAT = "/v1/chat/completions"


async def send(
    method: str, path: str, *origins: str, is_loading: bool = False, **headers: str
) -> httpx.Response:
    state = small_state(ServerConfig(api_keys=("sk-a",)))
    app = create_app(state)
    behind = Gate(state.metrics) if is_loading else app
    transport = httpx.ASGITransport(with_cors(behind, origins, state.metrics))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=named)


async def preflight(*origins: str, origin: str = ORIGIN_OF_PAGE) -> httpx.Response:
    return await send(
        "OPTIONS",
        CHAT,
        *origins,
        origin=origin,
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type,x-stainless-lang",
    )


async def test_a_preflight_needs_no_key() -> None:
    response = await preflight(ORIGIN_OF_PAGE)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN_OF_PAGE
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"]
    assert all(name in allowed for name in ("authorization", "content-type", "x-stainless-lang"))
    assert "access-control-allow-credentials" not in response.headers


async def test_a_preflight_is_answered_with_an_id_and_logged_once() -> None:
    for origin in (ORIGIN_OF_PAGE, "https://evil.example.com"):
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            response = await preflight(ORIGIN_OF_PAGE, origin=origin)
        assert [line["event"] for line in logs] == ["http_request"]
        assert logs[0]["request_id"] == response.headers["x-request-id"]
        assert "server-timing" in response.headers


async def test_others_get_nothing() -> None:
    for origins, origin in (
        ((ORIGIN_OF_PAGE,), "https://evil.example.com"),
        ((ORIGIN_OF_PAGE,), "https://app.example.com.evil.com"),
        ((ORIGIN_OF_PAGE,), "http://app.example.com"),
        ((), ORIGIN_OF_PAGE),
    ):
        response = await preflight(*origins, origin=origin)
        assert response.status_code in (400, 401)
        assert "access-control-allow-origin" not in response.headers


async def test_answers_and_errors_can_be_read_with_their_headers() -> None:
    for key, status in (("sk-a", 200), ("sk-wrong", 401)):
        response = await send(
            "GET", "/v1/models", "*", origin=ORIGIN_OF_PAGE, authorization=f"Bearer {key}"
        )
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "*"
        exposed = response.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-request-id", "retry-after", *RATE_LIMIT_HEADERS} <= set(exposed)
        assert response.headers["x-request-id"]


async def test_a_server_that_loads_can_be_read_too() -> None:
    response = await send("GET", "/readyz", "*", is_loading=True, origin=ORIGIN_OF_PAGE)
    assert response.status_code == 503
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("text", ["*", "https://a.b", "http://localhost:3000", "app://x"])
def test_origins(text: str) -> None:
    assert ORIGIN.parse(text) == text


@pytest.mark.parametrize("text", ["a.b", "https://a.b/", "https://a.b/x", "https://", "**", "//a"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="an origin such as"):
        ORIGIN.parse(text)
