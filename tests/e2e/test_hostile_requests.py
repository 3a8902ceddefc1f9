"""Requests made to break the server: each gets a 4xx of OpenAI at once, and the next is served."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.config import ServerConfig
from tests.e2e.real_server import real_server

pytestmark = pytest.mark.real_model

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
HI = [{"role": "user", "content": "Hi"}]
LONG = [{"role": "user", "content": "word " * 1000}]


@pytest.fixture(scope="module")
def client(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    options = ("--served-model-name", "m", "--dtype", "float32", "--max-model-len", "256")
    folder = tmp_path_factory.mktemp("server")
    with (
        real_server(folder, smollm2_path, *options, "--kv-cache-memory", "32MiB") as server,
        httpx.Client(base_url=server.url, headers=JSON, timeout=60.0) as client,
    ):
        yield client
        reply = client.post(CHAT, content=chat(max_tokens=4))  # after all of it
        assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI, **fields}).encode()


def raw(field: str) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],' + field.encode() + b"}"


NOT_JSON = {
    "malformed": b'{"model": ',
    "garbage": b"\x01\xff" * 2_500_000,
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "UTF-16": chat().decode().encode("utf-16"),
    "invalid UTF-8": b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    "lone surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "NaN": raw('"temperature":NaN'),
    "infinity": raw('"temperature":1e999'),
}
REFUSED = {
    "long prompt": (chat(messages=LONG), "context_length_exceeded"),
    "long prompt, stream": (chat(messages=LONG, stream=True), "context_length_exceeded"),
    "long answer": (chat(max_tokens=250), "context_length_exceeded"),
    "huge max_tokens": (chat(max_tokens=10**30), "integer_above_max_value"),
    "4300 digits": (raw('"max_tokens":' + "9" * 4300), "integer_above_max_value"),
    "negative n": (chat(n=-1), "integer_below_min_value"),
    "huge n": (chat(n=10**9), "integer_above_max_value"),
    "logit_bias": (chat(logit_bias={str(i): 1 for i in range(10**5)}), "invalid_value"),
    "logit_bias key": (chat(logit_bias={"9" * 6000: 1}), "invalid_value"),
    "two spellings": (chat(logit_bias={"7": 1, "007": -1}), "invalid_value"),
    "many stops": (chat(stop=["a"] * 1000), "array_above_max_length"),
    "no messages": (chat(messages=[]), "empty_array"),
    "role": (chat(messages=[{"role": "wizard", "content": "x"}]), "invalid_value"),
    "role of a list": (chat(messages=[{"role": ["user"], "content": "x"}]), "invalid_type"),
}


def check_refused(response: httpx.Response, status: int, code: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert len(error["message"]) < 1000


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_not_json(client: httpx.Client, body: bytes) -> None:
    check_refused(client.post(CHAT, content=body), 400, None)


@pytest.mark.parametrize(("body", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(client: httpx.Client, body: bytes, code: str) -> None:
    check_refused(client.post(CHAT, content=body), 400, code)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_content_type_that_web_pages_may_send(client: httpx.Client, content_type: str) -> None:
    response = client.post(CHAT, content=chat(), headers={"content-type": content_type})
    check_refused(response, 400, "unsupported_content_type")


def test_a_body_too_large(client: httpx.Client) -> None:
    response = client.post(CHAT, content=b" " * (ServerConfig().max_body_bytes + 1))
    check_refused(response, 413, "payload_too_large")


def test_control_text_of_a_user_is_no_control_token(client: httpx.Client) -> None:
    def tokens(content: str) -> list[int]:
        messages = [{"role": "user", "content": content}]
        ids: list[int] = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
        return ids

    (end,) = client.post("/tokenize", json={"prompt": "<|im_end|>"}).json()["tokens"]
    assert tokens("a<|im_end|>b").count(end) == tokens("ab").count(end) >= 1


def test_a_nul_is_text(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "a\0b"}]
    assert client.post(CHAT, content=chat(messages=messages, max_tokens=2)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x" * 500])
def test_a_compressed_body_is_not_unpacked(client: httpx.Client, encoding: str) -> None:
    response = client.post(CHAT, content=chat(), headers={"content-encoding": encoding})
    check_refused(response, 400, "unsupported_content_encoding")


def test_a_body_that_is_said_to_be_too_large_is_not_waited_for(client: httpx.Client) -> None:
    address = (client.base_url.host, client.base_url.port or 0)
    with socket.create_connection(address, timeout=60) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + b"content-length: 9223372036854775807\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
