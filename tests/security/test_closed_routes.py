"""Without a key there is nothing but three health checks, however a path is written."""

from collections.abc import Iterator

import httpx
import pytest
from starlette.routing import Route

from server.app import create_app
from server.config import ServerConfig
from tests.e2e.running_server import serve
from tests.server.small_app import client_of, small_state

KEY = "sk-secret-0123456789abcdef"
OPEN = {"/livez", "/readyz", "/health"}
STATE = small_state(ServerConfig(api_keys=(KEY,)))


def routes() -> Iterator[tuple[str, str]]:
    """Method and path of everything that answers, documentation and metrics too."""
    app = create_app(STATE)
    for path, operations in app.openapi()["paths"].items():
        yield from ((method.upper(), path) for method in operations)
    for route in app.routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in sorted(route.methods or ()))


@pytest.mark.parametrize(("method", "path"), sorted(set(routes())))
async def test_every_route_asks_for_a_key(method: str, path: str) -> None:
    async with client_of(STATE) as client:
        for headers in ({}, {"authorization": "Bearer no"}, {"x-api-key": KEY}, {"api-key": KEY}):
            response = await client.request(method, path.format(model="m"), headers=headers)
            assert (response.status_code == 401) is (path not in OPEN), path


SPELLINGS = (
    *("//metrics", "/METRICS", "/metrics/", "/metrics;/livez", "/metrics?/livez", "/%6detrics"),
    *("/livez/../metrics", "/livez/..%2fmetrics", "/livez%2f..%2fmetrics", "/metrics%00/livez"),
    *("/livez%00", "/livez/", "/livez%0a", "/./metrics", "/metrics%23/livez", "/livez;metrics"),
    *("/docs/oauth2-redirect", "/static/../metrics", "/\\metrics", "/v1/../metrics", "/ livez"),
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_path_gets_past_it(spelling: str) -> None:
    """As a socket has it: a client library would tidy it up."""
    with serve(STATE) as running:
        address = httpx.URL(running.url)
        transport = httpx.HTTPTransport()
        request = httpx.Request("GET", running.url)
        request.url = request.url.copy_with(raw_path=spelling.replace(" ", "%20").encode())
        with httpx.Client(transport=transport) as client:
            response = client.send(request)
        assert response.status_code == 401, (address, spelling)
        assert b"qwen_serve" not in response.content


async def test_no_answer_and_no_log_line_has_a_key(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = KEY[:-1] + "X"
    async with client_of(STATE) as client:
        texts = []
        for key in (KEY, wrong):
            for path in ("/v1/models", "/v1/nothing", "/metrics", "/openapi.json"):
                headers = {"authorization": f"Bearer {key}"}
                texts.append((await client.get(path, headers=headers)).text)
    out = capfd.readouterr()
    for secret in (KEY, wrong):
        assert not any(secret in text for text in (*texts, out.out, out.err))


@pytest.mark.parametrize(
    "value",
    [
        *("", "Bearer", "Bearer ", "Basic " + KEY, KEY, f"Bearer {KEY} x", f"Bearer {KEY[:-1]}"),
        *(f"Bearer  x{KEY}", "Bearer \xff\xfe", "Bearer " + "a" * 60_000, f"Bearer {KEY.upper()}"),
        *(f"Bearer\t{KEY}", f"Token {KEY}", f"Bearer '{KEY}'", f"Bearer {KEY}\x00", "Bearer null"),
    ],
    ids=lambda value: repr(value[:30]),
)
async def test_what_is_no_key(value: str) -> None:
    async with client_of(STATE) as client:
        headers = {"authorization": value.encode("latin-1")}
        response = await client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 401


async def test_of_two_headers_the_first_counts() -> None:
    """And not any of them: a proxy that checks the first must mean the same one."""
    async with client_of(STATE) as client:
        good, bad = ("authorization", f"Bearer {KEY}"), ("authorization", "Bearer no")
        assert (await client.get("/v1/models", headers=[bad, good])).status_code == 401
