"""Bytes of clients and of the other end of the queue: an answer or an error, never a failure."""

import asyncio
import contextlib
import copy
import json
import random
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import codec
from engine.messages import (
    Abort,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Fault,
    Finished,
    Grammar,
    Hello,
    Progress,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from protocol.errors import MAX_MESSAGE_CHARS, MAX_PARAM_CHARS
from protocol.sse import SseDecoder
from server.app import create_app
from server.config import ServerConfig
from tests.fuzz.budget import budget, damaged
from tests.server.tool_app import HERMES, TOOLS, answering, tool_app

SEEDS = st.integers(0, 2**32)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
CHAT: dict[str, Any] = {
    "model": "org/small",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}], "name": "n"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "get_time", "arguments": '{"a": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    ],
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "logit_bias": {"7": -1.5},
    "stop": ["x", "y"],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "seed": 4,
    "metadata": {"a": "b"},
    "stream_options": {"include_usage": True},
    "stream": True,
}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        CHAT,
        {
            "model": "org/small",
            "messages": [{"role": "user", "content": "q"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
            },
            "chat_template_kwargs": {"enable_thinking": False},
            "stop_token_ids": [1],
            "cache_salt": "s",
            "priority": 1,
        },
        {
            "model": "org/small",
            "messages": [{"role": "user", "content": "q"}],
            "structured_outputs": {"regex": "[ab]+"},
            "functions": [],
        },
    ],
    "/v1/completions": [
        {"model": "org/small", "prompt": ["a", "b"], "echo": True, "logprobs": 2, "best_of": 2},
        {"model": "org/small", "prompt": [[1, 2], [3]], "suffix": None, "max_tokens": 4, "n": 1},
    ],
    "/tokenize": [{"prompt": "a", "return_token_strs": True}, {"messages": CHAT["messages"]}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 10**30, 1e308, -0.0, 0.5, "", "a" * 5000, [], {}, [[]], {"a": {}}),
    *("\0", "\u2028", "<|im_end|>", "{{ 7*7 }}", "../../etc/passwd", "x\r\nset-cookie: a", [None]),
    *("é" * 300, ["a"] * 300, {str(i): i for i in range(300)}, "\U0010ffff", [1, "a", None, {}]),
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container and key in JSON data."""
    found = []
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        found.append((node, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


def mutated(body: dict[str, Any], seed: int) -> bytes:
    """With one to three values replaced, taken away, moved or put in too many."""
    generator = random.Random(seed)
    body = copy.deepcopy(body)
    for _ in range(generator.randint(1, 3)):
        found = places(body)
        if not found:
            break
        holder, key = generator.choice(found)
        match generator.randrange(4):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(generator.choice(places(body))[0])
            case 2 if isinstance(holder, dict):
                holder[generator.choice(("", "a", "\0", "__class__", "$ref", "type"))] = 1
            case _:
                holder[key] = copy.deepcopy(generator.choice(ODD))
    return json.dumps(body).encode()


async def post(path: str, content: bytes, *, warns: bool = False) -> httpx.Response:
    config = ServerConfig(unknown_fields="warn" if warns else "refuse")
    app = create_app(tool_app(HERMES, answering("Hi", " there"), config=config).state)
    transport = httpx.ASGITransport(app)  # raises what the application raises
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = {"content-type": "application/json"}
        return await client.post(path, content=content, headers=headers)


def check_answer(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) <= MAX_MESSAGE_CHARS
        assert len(error["param"] or "") <= MAX_PARAM_CHARS
    elif response.headers["content-type"] == "text/event-stream":
        assert response.text.endswith("data: [DONE]\n\n")


def body_of(path: str, seed: int) -> dict[str, Any]:
    return random.Random(seed).choice(BODIES[path])


@pytest.mark.parametrize("path", BODIES)
@budget(80)
@given(SEEDS)
def test_bodies_with_odd_values(path: str, seed: int) -> None:
    check_answer(asyncio.run(post(path, mutated(body_of(path, seed), seed), warns=seed % 2 == 0)))


@pytest.mark.parametrize("path", BODIES)
@budget(40)
@given(SEEDS)
def test_damaged_bodies(path: str, seed: int) -> None:
    content = damaged(json.dumps(body_of(path, seed)).encode(), seed)
    check_answer(asyncio.run(post(path, content)))


def test_the_bodies_are_right() -> None:
    """Or their mutations would be refused for what they had before."""
    for path, bodies in BODIES.items():
        for body in bodies:
            response = asyncio.run(post(path, json.dumps(body).encode()))
            assert response.status_code == 200, (path, response.text)


SAMPLING = SamplingParams(max_tokens=5, logit_bias={1: 2.0}, stop_token_ids=(3,), logprobs=2)
TO_ENGINE: list[Any] = [
    Hello(),
    Abort("a"),
    EngineRequest(
        id="a",
        prompt_token_ids=[1, 2],
        sampling=SAMPLING,
        grammar=Grammar(kind="regex", text="é+"),
        progress=Progress([1]),
    ),
]
FROM_ENGINE: list[Any] = [
    EngineInfo(
        max_model_len=1,
        vocab_size=2,
        num_blocks=3,
        block_size=4,
        dtype="d",
        device="é",
        backend="b",
    ),
    EngineStats(num_steps=2**40),
    TokenEvent("a", [1], [TokenLogprobs(1, -0.5, [(1, -0.5)])], [None]),
    Finished("a", "error", fault=Fault("internal", "é")),
]


@budget(500)
@given(SEEDS)
def test_frames_of_the_queue(seed: int) -> None:
    """Nothing but msgspec.DecodeError, which both ends expect."""
    for messages, decode in (
        (TO_ENGINE, codec.decode_to_engine),
        (FROM_ENGINE, codec.decode_from_engine),
    ):
        with contextlib.suppress(msgspec.DecodeError):
            decode(damaged(codec.encode(messages), seed))


@budget(150)
@given(st.binary(max_size=200))
def test_any_frame(frame: bytes) -> None:
    for decode in (codec.decode_to_engine, codec.decode_from_engine):
        with contextlib.suppress(msgspec.DecodeError):
            decode(frame)


@budget(150)
@given(st.lists(st.sampled_from([b"data:", b" x", b"\n", b"\r\n", b"\xff", b"\xe4\xbd", b":"])))
def test_events_do_not_depend_on_how_they_are_cut(pieces: list[bytes]) -> None:
    whole = SseDecoder().feed(b"".join(pieces))
    decoder = SseDecoder()
    assert [event for piece in pieces for event in decoder.feed(piece)] == whole
    decoder = SseDecoder()
    assert [e for byte in b"".join(pieces) for e in decoder.feed(bytes([byte]))] == whole
