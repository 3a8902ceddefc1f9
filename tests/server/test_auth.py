"""Who may pass, and what the others are told."""

import pytest

from server.config import ServerConfig
from tests.server.scripted_app import App
from tests.server.small_app import client_of

KEYS = ("sk-first-0123456789abcdef", "sk-second")


def app() -> App:
    return App(config=ServerConfig(api_keys=KEYS))


async def status(path: str, method: str = "GET", **headers: str) -> int:
    async with client_of(app().state) as client:
        return (await client.request(method, path, headers=headers)).status_code


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_every_key_passes(key: str, scheme: str) -> None:
    assert await status("/v1/models", authorization=f"{scheme} {key}") == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
async def test_health_is_open(path: str) -> None:
    assert await status(path) == 200


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/metrics", "/docs",
     "/openapi.json", "/nowhere", "/livez/", "/health/../v1/models"],
)  # fmt: skip
async def test_all_else_is_closed(path: str) -> None:
    assert await status(path) == 401
    assert await status(path, "POST") == 401


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic c2s=", KEYS[0]])
async def test_missing(authorization: str) -> None:
    headers = {"authorization": authorization} if authorization else {}
    response = await app().post("/v1/chat/completions", {}, **headers)
    error = response.json()["error"]
    assert response.status_code == 401
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert error["message"].startswith("You didn't provide an API key.")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("key", ["sk-first-0123456789abcdeX", "sk-secon", "sk-second2", "k"])
async def test_wrong(key: str) -> None:
    response = await app().post("/v1/chat/completions", {}, authorization=f"Bearer {key}")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (401, "invalid_api_key")
    assert error["message"].startswith("Incorrect API key provided: ")
    assert key not in error["message"].removeprefix("Incorrect API key provided: ")


async def test_no_keys_no_check() -> None:
    async with client_of(App().state) as client:
        assert (await client.get("/v1/models")).status_code == 200
