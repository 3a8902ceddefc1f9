"""Limits as clients see them: headers, refusals, and that everything charged is settled."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.fake import FakeEngine, Script
from engine.messages import EngineRequest, Event, Fault
from server.access import Access
from server.app import create_app
from server.config import ServerConfig
from server.key_file import KeyFileError, add_key
from server.keys import Limits
from server.limits import RATE_LIMIT_HEADERS
from tests.server.scripted_app import saying
from tests.server.small_app import client_of, small_state

CHAT = "/v1/chat/completions"
BODY = {"model": "alias", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
NUM_PROMPT = len(b"user:hi") + 1 + len(b"assistant:")


class Limited:
    """An application with one key; the store's clock stands still."""

    def __init__(self, folder: Path, script: Script, limits: Limits) -> None:
        file = folder / "keys.yaml"
        self.limits = limits
        self.key = add_key(file, "alice", ["infer"], limits)
        config = ServerConfig(keys_file=str(file), api_keys=("sk-free",))
        self.access = Access(config)
        self.now = 1000.0
        self.access.limits._clock = lambda: self.now  # type: ignore[attr-defined]
        self.engine = FakeEngine(script=script)
        self.app = create_app(small_state(config, self.engine), self.access)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="http://test",
            headers={"authorization": f"Bearer {self.key}"},
        )

    async def used(self) -> tuple[float, float, int]:
        standing = await self.access.limits.charge("alice", self.limits, 0)
        return standing.requests, standing.tokens, standing.concurrency


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


async def test_headers_and_the_refusal(folder: Path) -> None:
    limited = Limited(folder, saying("abc"), Limits(requests_per_minute=3))
    async with limited.client() as client:
        for left, reset in ((2, "20s"), (1, "40s"), (0, "1m0s")):
            response = await client.post(CHAT, json=BODY)
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-reset-requests"] == reset
            assert "x-ratelimit-limit-tokens" not in response.headers
        response = await client.post(CHAT, json=BODY)
        assert response.status_code == 429
        assert response.json()["error"] == {
            "message": "Rate limit reached for key `alice` on requests per min (RPM): Limit 3, "
            "Used 3, Requested 1. Please try again in 20s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert response.headers["retry-after"] == "20"
        assert response.headers["retry-after-ms"] == "20000"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(limited.engine.requests) == 3
        limited.now += 20
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200  # only POST counts


async def test_a_key_without_limits_has_no_headers(folder: Path) -> None:
    limited = Limited(folder, saying("abc"), Limits(requests_per_minute=1))
    async with limited.client() as client:
        for _ in range(3):
            response = await client.post(
                CHAT, json=BODY, headers={"authorization": "Bearer sk-free"}
            )
            assert response.status_code == 200
            assert not set(RATE_LIMIT_HEADERS) & set(response.headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_charged_by_an_estimate_and_settled(folder: Path, stream: bool) -> None:
    limited = Limited(folder, saying("abcd"), Limits(tokens_per_minute=200))
    async with limited.client() as client:
        response = await client.post(CHAT, json={**BODY, "stream": stream})
        assert response.status_code == 200
        used = NUM_PROMPT + len("abcd") + 1  # and the stop token
        assert (await limited.used())[1] == pytest.approx(used)
        assert response.headers["x-ratelimit-limit-tokens"] == "200"
        # a stream's headers are sent before its end is known
        shown = NUM_PROMPT + 40 if stream else used
        assert response.headers["x-ratelimit-remaining-tokens"] == str(200 - shown)


async def test_tokens_that_are_used_up(folder: Path) -> None:
    limited = Limited(folder, saying("a" * 30), Limits(tokens_per_minute=100))
    async with limited.client() as client:
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        used = NUM_PROMPT + 31
        response = await client.post(CHAT, json=BODY)
        assert response.status_code == 429
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        asked = NUM_PROMPT + 40
        assert f"Limit 100, Used {used}, Requested {asked}." in error["message"]
        wait_ms = int(response.headers["retry-after-ms"])
        assert wait_ms == pytest.approx((used + asked - 100) / 100 * 60_000, abs=2)
        assert len(limited.engine.requests) == 1
        limited.now += wait_ms / 1000
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_n_choices_count_their_prompt_once(folder: Path) -> None:
    limited = Limited(folder, saying("ab"), Limits(tokens_per_minute=1000))
    async with limited.client() as client:
        assert (await client.post(CHAT, json={**BODY, "n": 3})).status_code == 200
        assert (await limited.used())[1] == pytest.approx(NUM_PROMPT + 3 * 3)
        body = {"model": "alias", "prompt": ["abc", "de"], "n": 2, "max_tokens": 5}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        assert (await limited.used())[1] == pytest.approx(NUM_PROMPT + 9 + 5 + 4 * 3)


async def test_a_prompt_that_can_never_pass_is_not_to_be_sent_again(folder: Path) -> None:
    limited = Limited(folder, saying("a"), Limits(tokens_per_minute=10))
    async with limited.client() as client:
        response = await client.post(CHAT, json=BODY)
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "tokens"
    assert response.json()["error"]["message"].startswith("Request too large for key `alice`")
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    assert (await limited.used())[1:] == (0, 0)


async def test_an_answer_longer_than_a_minutes_tokens_passes_and_is_owed(folder: Path) -> None:
    limited = Limited(folder, saying("a" * 60), Limits(tokens_per_minute=30))
    async with limited.client() as client:
        assert (await client.post(CHAT, json={**BODY, "max_tokens": 61})).status_code == 200
        used = NUM_PROMPT + 61
        assert (await limited.used())[1] == pytest.approx(used)
        response = await client.post(CHAT, json={**BODY, "max_tokens": 1})
        assert response.status_code == 429
        assert response.headers["x-ratelimit-remaining-tokens"] == "0"


def failing(request: EngineRequest) -> Iterator[Event | float]:
    yield from saying("abc", reason="error", fault=Fault("internal", "it broke"))(request)


BAD_ENDS: dict[str, tuple[Script, dict[str, Any], int, int]] = {
    "engine fault": (failing, {}, 500, NUM_PROMPT + 3),
    "engine fault in a stream": (failing, {"stream": True}, 200, NUM_PROMPT + 3),
    "bad field": (saying("a"), {"temperature": 9}, 400, 0),
    "too long": (saying("a"), {"max_tokens": 1000}, 400, 0),
    "unknown model": (saying("a"), {"model": "other"}, 404, 0),
}


@pytest.mark.parametrize("end", BAD_ENDS)
async def test_every_bad_end_gives_back_what_was_not_used(folder: Path, end: str) -> None:
    script, fields, status, num_used = BAD_ENDS[end]
    limits = Limits(tokens_per_minute=1000, concurrency=1, requests_per_minute=100)
    limited = Limited(folder, script, limits)
    async with limited.client() as client:
        for i in range(1, 4):
            response = await client.post(CHAT, json={**BODY, **fields})
            assert response.status_code == status
            num_requests, num_tokens, num_places = await limited.used()
            assert num_requests == pytest.approx(i)
            assert num_tokens == pytest.approx(i * num_used)
            assert num_places == 0


def endless(request: EngineRequest) -> Iterator[Event | float]:
    while True:
        yield from list(saying("a")(request))[:1]
        yield 0.001


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_gives_its_place_back_and_pays_what_it_got(
    folder: Path, stream: bool
) -> None:
    limited = Limited(folder, endless, Limits(tokens_per_minute=1000, concurrency=1))
    async with limited.client() as client:
        has_left = asyncio.Event()
        sent: list[Any] = []
        body = httpx.Request("POST", "http://x", json={**BODY, "stream": stream}).content

        async def receive() -> Any:
            if not sent:
                sent.append(None)
                return {"type": "http.request", "body": body, "more_body": False}
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {limited.key}".encode())]
        headers.append((b"content-type", b"application/json"))
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
        scope |= {"query_string": b"", "root_path": "", "raw_path": CHAT.encode()}
        request = asyncio.create_task(limited.app(scope, receive, send))
        while limited.engine.stats().generation_tokens < 3:
            await asyncio.sleep(0.001)
        refused = await client.post(CHAT, json=BODY)
        assert refused.status_code == 429
        assert "requests at a time: Limit 1, Used 1, Requested 1." in refused.text
        assert int(refused.headers["retry-after"]) >= 1
        has_left.set()
        await request
        while (await limited.used())[2]:
            await asyncio.sleep(0.001)
        used = (await limited.used())[1]
        assert NUM_PROMPT + 3 <= used <= NUM_PROMPT + limited.engine.stats().generation_tokens
        assert limited.engine.stats().num_running == 0


async def test_a_cancelled_request_is_settled_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Limited(folder, saying("abc"), Limits(tokens_per_minute=1000, concurrency=1))
    is_leaving, may_leave = asyncio.Event(), asyncio.Event()
    leave = limited.access.limits.leave

    async def slow_leave(*args: Any) -> Any:
        is_leaving.set()
        await may_leave.wait()
        return await leave(*args)

    monkeypatch.setattr(limited.access.limits, "leave", slow_leave)
    async with limited.client() as client:
        request = asyncio.create_task(client.post(CHAT, json=BODY))
        await is_leaving.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert (await limited.used())[2] == 1
        may_leave.set()
        while (await limited.used())[2]:
            await asyncio.sleep(0)
        assert (await limited.used())[1] == pytest.approx(NUM_PROMPT + 4)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize"])
async def test_one_at_a_time_is_one_after_the_other(folder: Path, path: str) -> None:
    limited = Limited(folder, saying("a"), Limits(concurrency=1))
    bodies: dict[str, dict[str, Any]] = {CHAT: BODY, "/tokenize": {"prompt": "a"}}
    async with limited.client() as client:
        for stream in (False, True) * 5 if path != "/tokenize" else (None,) * 5:
            body = bodies.get(path, {"model": "alias", "prompt": "a"})
            if stream is not None:
                body = {**body, "stream": stream}
            assert (await client.post(path, json=body)).status_code == 200


async def test_several_workers_that_count_alone_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(file, "free", ["infer"], Limits())
    Access(ServerConfig(keys_file=str(file), workers=2))
    add_key(file, "alice", ["infer"], Limits(concurrency=1))
    with pytest.raises(KeyFileError, match="limits the key alice: with several workers"):
        Access(ServerConfig(keys_file=str(file), workers=2))
    url = "redis://127.0.0.1:1/0"
    await Access(ServerConfig(keys_file=str(file), workers=2, limits_store=url)).limits.aclose()


async def test_a_request_without_keys_configured_has_no_limits() -> None:
    async with client_of(small_state()) as client:
        response = await client.post(CHAT, json=BODY)
    assert response.status_code == 200
    assert not set(RATE_LIMIT_HEADERS) & set(response.headers)
