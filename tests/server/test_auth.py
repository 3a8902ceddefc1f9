"""Who may pass, and what the others are told."""

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import _IncludedRouter
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from server.access import Access
from server.app import create_app
from server.auth import AuthMiddleware
from server.config import ServerConfig
from server.key_file import add_key, remove_key
from server.keys import ALL_SCOPES, Limits
from server.keys import Scope as KeyScope
from server.scopes import OPEN_PATHS, ROUTE_SCOPES, scopes_of
from tests.server.scripted_app import App
from tests.server.small_app import client_of, small_state
from tests.waiting import DEADLINE_S

KEYS = ("sk-first-0123456789abcdef", "sk-second")


def app() -> App:
    return App(config=ServerConfig(api_keys=KEYS))


async def status(path: str, method: str = "GET", **headers: str) -> int:
    async with client_of(app().state) as client:
        return (await client.request(method, path, headers=headers)).status_code


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer  "])
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


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic", "Digest x", f"Bearer\t{KEYS[0]}", *KEYS]
)
async def test_missing(authorization: str) -> None:
    headers = {"authorization": authorization} if authorization else {}
    response = await app().post("/v1/chat/completions", {}, **headers)
    error = response.json()["error"]
    assert response.status_code == 401
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert error["message"].startswith("You didn't provide an API key.")
    assert response.headers["www-authenticate"].startswith("Bearer, Basic realm=")
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


async def test_an_empty_keys_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").touch()
    app = App(config=ServerConfig(keys_file=str(tmp_path / "keys.yaml")))
    async with client_of(app.state) as client:
        assert (await client.get("/v1/models")).status_code == 401


def basic(pair: str) -> dict[str, str]:
    return {"authorization": f"Basic {b64encode(pair.encode()).decode()}"}


@pytest.mark.parametrize(
    ("pair", "status"),
    [
        ("admin:pass:wört", 200),
        ("admin:pass", 401),
        ("admin:", 401),
        (":pass:wört", 401),
        ("api-key-1:sk-a-key", 200),
        ("admin:sk-a-key", 401),
        ("sk-a-key:", 401),
    ],
)
async def test_basic_auth(pair: str, status: int) -> None:
    config = ServerConfig(api_keys=("sk-a-key",), basic_auth=("admin:pass:wört",))
    async with client_of(small_state(config)) as client:
        response = await client.get("/v1/models", headers=basic(pair))
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("credentials", ["c2s=", "ü", "a:b", "====", "YTpi!"])
async def test_what_is_not_basic_auth(credentials: str) -> None:
    response = await call([(b"authorization", f"Basic {credentials}".encode())])
    assert response["status"] == 401
    assert b"base64 of user:password" in response["body"]


async def call(headers: list[tuple[bytes, bytes]], path: str = "/v1/models") -> dict[str, Any]:
    """Raw header bytes, which an HTTP client would not send."""
    config = ServerConfig(api_keys=("sk-ключ-0123456789", *KEYS))
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    answer: dict[str, Any] = {"status": 200, "body": b""}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer["key"] = scope["qwen.key"]

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
        answer["body"] += message.get("body", b"")

    await AuthMiddleware(app, Access(config).keys)(scope, receive, send)
    return answer


async def test_a_key_that_is_not_ascii() -> None:
    good = await call([(b"authorization", "Bearer sk-ключ-0123456789".encode())])
    assert good["key"] == "api-key-1"
    for wrong in (b"Bearer sk-\xff\xfe", "Bearer sk-ключ".encode("utf-16"), b"Bearer \x00"):
        assert (await call([(b"authorization", wrong)]))["status"] == 401


async def test_two_headers_are_refused_even_if_both_are_right() -> None:
    right = (b"authorization", f"Bearer {KEYS[0]}".encode())
    for other in (b"Bearer sk-wrong", f"Bearer {KEYS[0]}".encode(), b""):
        for headers in ([right, (b"authorization", other)], [(b"authorization", other), right]):
            response = await call(headers)
            assert response["status"] == 401
            assert b"more than one Authorization header" in response["body"]


async def test_a_long_header() -> None:
    response = await call([(b"authorization", b"Bearer " + b"k" * 1_000_000)])
    assert response["status"] == 401
    assert len(response["body"]) < 500


async def test_a_key_in_the_wrong_place_does_not_count() -> None:
    key = KEYS[0].encode()
    for headers in (
        [(b"x-api-key", key)],
        [(b"proxy-authorization", b"Bearer " + key)],
        [(b"authorization", b"Bearer sk-wrong, Bearer " + key)],
        [(b"authorization", b"Bearer " + key + b",")],
    ):
        assert (await call(headers))["status"] == 401
    assert (await call([], path=f"/v1/models?api_key={KEYS[0]}"))["status"] == 401


def templates_of(routes: list[Any]) -> Iterator[str]:
    for route in routes:
        if isinstance(route, _IncludedRouter):
            prefix = route.include_context.prefix
            yield from (prefix + path for path in templates_of(route.original_router.routes))
        else:
            assert isinstance(route, Route), f"a route of a kind this test does not know: {route}"
            yield route.path


def test_every_route_has_its_scopes_and_the_table_has_no_other() -> None:
    templates = list(templates_of(create_app(small_state()).routes))
    assert sorted(templates) == sorted([*OPEN_PATHS, *ROUTE_SCOPES])
    assert all(scopes and scopes <= ALL_SCOPES for scopes in ROUTE_SCOPES.values())
    for template, scopes in ROUTE_SCOPES.items():
        assert scopes_of(template.replace("{model:path}", "org/name")) == scopes


@pytest.mark.parametrize(
    "path", ["/v1/Models", "/v1/models/", "//v1/models", "/v1//models", "/metrics/x", "/", "/v1"]
)
async def test_a_path_that_no_route_has_is_404_for_a_key_and_401_without(path: str) -> None:
    if path != "/v1/models/":  # a model without a name, for the route
        assert scopes_of(path) is None
    assert await status(path) == 401
    assert await status(path, authorization=f"Bearer {KEYS[0]}") == 404


ROUTES: list[tuple[str, str, KeyScope]] = [
    ("POST", "/v1/chat/completions", "infer"),
    ("POST", "/v1/completions", "infer"),
    ("POST", "/tokenize", "infer"),
    ("GET", "/v1/models", "infer"),
    ("GET", "/v1/models/org/small", "tune"),
    ("GET", "/metrics", "metrics"),
    ("GET", "/openapi.json", "admin"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_a_key_opens_what_its_scopes_say(
    method: str, path: str, scope: KeyScope, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    right = add_key(file, "right", [scope], Limits())
    opening = scopes_of(path)
    assert opening is not None
    wrong = add_key(file, "wrong", sorted(ALL_SCOPES - opening), Limits())
    async with client_of(small_state(ServerConfig(keys_file=str(file)))) as client:

        async def ask(key: str) -> httpx.Response:
            return await client.request(method, path, headers={"authorization": f"Bearer {key}"})

        assert (await ask(right)).status_code not in (401, 403, 404)
        refused = await ask(wrong)
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "insufficient_permissions")
    assert scope in error["message"]


async def test_a_changed_file_is_taken_and_a_bad_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.file_watch._POLL_S", 0.001)
    file = tmp_path / "keys.yaml"
    first = add_key(file, "first", ["infer"], Limits())
    config = ServerConfig(keys_file=str(file), api_keys=("sk-option",))
    access = Access(config)
    transport = httpx.ASGITransport(create_app(small_state(config), access))
    watching = asyncio.create_task(access.watch())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def becomes(key: str, status: int) -> None:
            headers = {"authorization": f"Bearer {key}"}
            async with asyncio.timeout(DEADLINE_S):
                while (await client.get("/v1/models", headers=headers)).status_code != status:
                    await asyncio.sleep(0.001)

        await becomes(first, 200)
        second = add_key(file, "second", ["infer"], Limits())
        await becomes(second, 200)
        remove_key(file, "first")
        await becomes(first, 401)
        good = file.read_text()
        for bad in ("keys: [", None):
            file.unlink() if bad is None else file.write_text(bad)
            await asyncio.sleep(0.02)
            await becomes(second, 200)
            await becomes("sk-option", 200)
        file.write_text(good.replace("second", "renamed"))
        third = add_key(file, "third", ["infer"], Limits())
        await becomes(third, 200)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
