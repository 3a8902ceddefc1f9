"""The application as a whole: unknown URLs and methods, and its own description."""

import httpx
import pytest

from server.config import ServerConfig
from tests.server.scripted_app import App
from tests.server.small_app import client_of


async def send(method: str, path: str) -> httpx.Response:
    async with client_of(App().state) as client:
        return await client.request(method, path)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/foo", "/v1/chat/completions/", "/v2/models"])
async def test_unknown_url(path: str) -> None:
    response = await send("POST", path)
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "message": f"Invalid URL (POST {path})",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_url",
        }
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("DELETE", "/v1/models", "GET"),
    ],
)
async def test_wrong_method(method: str, path: str, allowed: str) -> None:
    response = await send(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["error"] == {
        "message": f"Not allowed to {method} on {path}.",
        "type": "invalid_request_error",
        "param": None,
        "code": "method_not_supported",
    }


async def test_description_has_the_request_schemas() -> None:
    document = (await send("GET", "/openapi.json")).json()
    for path, fields in [
        ("/v1/chat/completions", {"messages", "temperature", "top_k"}),
        ("/v1/completions", {"prompt", "echo", "top_k"}),
    ]:
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert fields <= set(schema["properties"])
        assert "$ref" not in str(schema)
    assert (await send("GET", "/docs")).status_code == 200


async def test_the_description_can_be_switched_off() -> None:
    async with client_of(App(config=ServerConfig(docs=False)).state) as client:
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/v1/models")).status_code == 200


async def test_limits_of_the_body_are_those_of_the_options() -> None:
    config = ServerConfig(max_body_bytes=200, max_messages=2, max_tools=1)
    app = App(config=config)
    message = {"role": "user", "content": "a"}
    assert (await app.chat(messages=[message] * 2)).status_code == 200
    too_many = await app.chat(messages=[message] * 3)
    assert too_many.json()["error"]["code"] == "array_above_max_length"
    tools = await app.chat(tools=[1, 2])
    assert tools.json()["error"]["param"] == "tools"
    large = await app.chat(messages=[{"role": "user", "content": "a" * 200}])
    assert (large.status_code, large.json()["error"]["code"]) == (413, "payload_too_large")
    announced = await app.post("/tokenize", b"{}", **{"content-length": "201"})
    assert announced.status_code == 413
