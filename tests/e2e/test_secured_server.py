"""The command with everything that keeps others out: TLS, keys, limits in a real Redis, CORS.

Two HTTP workers on the real engine, and the unmodified openai SDK.
"""

import concurrent.futures
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import trustme
from openai import OpenAI

from server.key_file import add_key, read_keys, remove_key
from server.keys import Limits
from tests.e2e.real_server import real_server
from tests.redis_server import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.real_model

MODEL = "SmolLM2-135M-Instruct"
NUM_WORKERS = 2
PAGE = "https://app.example.com"


@dataclass(frozen=True, slots=True)
class Secured:
    url: str
    keys_file: Path
    log: Path
    trusting: ssl.SSLContext
    redis: RedisServer

    def key(self, name: str, **limits: int) -> str:
        """Make a key that both workers know."""
        made: list[str] = []
        self.change(lambda: made.append(add_key(self.keys_file, name, ["infer"], Limits(**limits))))
        return made[0]

    def change(self, change: Callable[[], object]) -> None:
        """Change the keys file and wait until both workers have read it."""
        seen = self.log.stat().st_size
        change()
        count = f'"count": {len(read_keys(self.keys_file))}, "event": "keys read again"'
        wait_until(lambda: self.log.read_text()[seen:].count(count) == NUM_WORKERS)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.trusting)

    def sdk(self, key: str, **options: int) -> OpenAI:
        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            http_client=httpx.Client(verify=self.trusting),  # type: ignore[arg-type]
            **{"max_retries": 0, **options},  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def secured(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        folder / "server.pem"
    )
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    redis_server = RedisServer(folder)
    redis_server.start()
    keys_file = folder / "keys.yaml"
    add_key(keys_file, "first", ["infer"], Limits(requests_per_minute=1))
    flags = ["--tls-certificate", str(folder / "server.pem"), "--workers", str(NUM_WORKERS)]
    flags += ["--keys-file", str(keys_file), "--limits-store", redis_server.url]
    flags += ["--cors-origin", PAGE, "--basic-auth", "admin:word", "--served-model-name", MODEL]
    flags += ["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]
    try:
        with real_server(folder, smollm2_path, *flags) as server:
            assert server.url.startswith("https://")
            yield Secured(server.url, keys_file, server.log, trusting, redis_server)
    finally:
        redis_server.stop()


def ask(client: OpenAI, **options: object) -> str:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=4,
        **options,  # type: ignore[call-overload]
    )
    return str(reply.choices[0].message.content)


def test_the_sdk_over_https(secured: Secured) -> None:
    with secured.sdk(secured.key("plain")) as client:
        assert ask(client)
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=8, stream=True
        )
        assert len(list(stream)) > 2


def test_wrong_missing_and_removed_keys(secured: Secured) -> None:
    key = secured.key("short-lived")
    with secured.sdk(key) as client:
        assert ask(client)
    with secured.sdk("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        ask(client)
    with secured.http() as http:
        assert http.post("/v1/chat/completions", json={}).status_code == 401
    secured.change(lambda: remove_key(secured.keys_file, "short-lived"))
    with secured.sdk(key) as client, pytest.raises(openai.AuthenticationError):
        ask(client)
    metrics_less = secured.key("metrics-less")
    with secured.http() as http:
        reply = http.get("/metrics", headers={"authorization": f"Bearer {metrics_less}"})
        assert reply.status_code == 403


def test_basic_auth(secured: Secured) -> None:
    with secured.http() as http:
        assert http.get("/metrics", auth=("admin", "word")).status_code == 200
        assert http.get("/metrics", auth=("admin", "wrong")).status_code == 401


def test_plain_http_and_strangers_get_nothing(secured: Secured) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(secured.url.replace("https:", "http:") + "/livez")
    with pytest.raises(httpx.ConnectError):
        httpx.get(secured.url + "/livez")  # the authority is not trusted
    host, _, port = secured.url.removeprefix("https://").partition(":")
    for garbage in (b"\x16\x03\x01" + b"\xff" * 600, b"\0" * 100, b""):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(garbage)
    with secured.http() as http:
        assert http.get("/livez").status_code == 200


def test_limits_hold_across_workers(secured: Secured) -> None:
    key = secured.key("limited", requests_per_minute=5)
    body = {"prompt": "a"}
    headers = {"authorization": f"Bearer {key}", "connection": "close"}
    began_at = time.monotonic()
    with secured.http() as http, concurrent.futures.ThreadPoolExecutor(10) as pool:
        sent = pool.map(lambda _: http.post("/tokenize", json=body, headers=headers), range(30))
        replies = list(sent)
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    wear_off = (time.monotonic() - began_at) / 12  # seconds until one more is free
    assert 5 <= statuses.count(200) <= 5 + wear_off
    for reply in replies:
        assert reply.headers["x-ratelimit-limit-requests"] == "5"
        if reply.status_code == 429:
            assert 0 < int(reply.headers["retry-after"]) <= 12


def test_the_sdk_waits_as_long_as_it_is_told(secured: Secured) -> None:
    key = secured.key("patient", requests_per_minute=120)
    with secured.sdk(key, max_retries=8) as client:
        for _ in range(125):
            client.post("/../tokenize", body={"prompt": "a"}, cast_to=object)
    with secured.sdk(secured.key("used-up", requests_per_minute=1)) as client:
        ask(client)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"


def test_one_at_a_time(secured: Secured) -> None:
    key = secured.key("single", concurrency=1, tokens_per_minute=100_000)
    with secured.sdk(key) as client:
        for _ in range(5):
            ask(client)
        with client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to a thousand."}],
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError, match="requests at a time"):
                ask(client)
    with secured.sdk(key, max_retries=8) as client:  # the other stream was left in its middle
        assert ask(client)


def test_a_deadline_aborts(secured: Secured) -> None:
    with secured.sdk(secured.key("hurried")) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(
                model=MODEL,
                prompt="Once",
                max_tokens=900,
                extra_headers={"x-request-timeout": "0.2"},
                extra_body={"ignore_eos": True},
            )
        assert caught.value.status_code == 504
        assert caught.value.code == "deadline_exceeded"
    with secured.http() as http:
        wait_until(
            lambda: (
                'qwen_serve_engine_running_sequences{model_name="SmolLM2-135M-Instruct"} 0.0'
                in http.get("/metrics", auth=("admin", "word")).text
            )
        )


def test_a_preflight_needs_no_key(secured: Secured) -> None:
    headers = {"origin": PAGE, "access-control-request-method": "POST"}
    with secured.http() as http:
        reply = http.options("/v1/chat/completions", headers=headers)
        assert reply.headers["access-control-allow-origin"] == PAGE


def test_without_redis_requests_go_on(secured: Secured) -> None:
    key = secured.key("lonely", requests_per_minute=1000)
    with secured.sdk(key) as client:
        assert ask(client)
        secured.redis.kill()
        try:
            assert ask(client) and ask(client)
        finally:
            secured.redis.start()
    assert "Redis is lost" in secured.log.read_text()
