"""The streaming client times each piece of text once, however the network cuts the stream."""

import asyncio

import pytest

from loadtest.client import Answer, Endpoint, ask

EVENTS = (
    b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    b": still here\n\n"
    b'data: {"choices": [{"delta": {"content": "a"}}], "error": null}\n\n'
    b'data: {"choices": [{"delta": {"reasoning_content": "b"}}], "usage": null}\r\n\r\n'
    b'data: {"choices": [{"index": 0, "text": "\\n\\n"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
)
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


async def ask_one(
    pieces: list[bytes], *, num_tokens: int = 3, pause_s: float = 0.001, timeout_s: float = 60.0
) -> Answer:
    """What the client makes of a server that sends `pieces` in writes of their own."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert await reader.readexactly(len(b'{"stream":true}')) == b'{"stream":true}'
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        finally:
            writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        return await ask(
            endpoint,
            "/chat/completions",
            {"stream": True},
            num_tokens=num_tokens,
            timeout_s=timeout_s,
        )


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


async def test_an_answer_cut_at_every_offset() -> None:
    body = EVENTS + DONE
    whole = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(body)
    for cut in range(0, len(whole), 3):
        answer = await ask_one([whole[:cut], whole[cut:]])
        assert answer.error == "", cut
        assert (answer.num_prompt_tokens, answer.num_output_tokens) == (7, 3)
        assert len(answer.text_times) == 3
        assert len(answer.gaps_s) == 2
        assert 0 < answer.first_token_s <= answer.finished - answer.started


async def test_an_answer_that_ends_with_its_connection() -> None:
    answer = await ask_one([HEAD + b"\r\n", EVENTS, DONE])
    assert answer.error == ""
    assert len(answer.text_times) == 3


async def test_times_are_those_of_the_pieces() -> None:
    text = b'data: {"choices": [{"text": "a"}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}\n\n'
    answer = await ask_one([HEAD + b"\r\n", text, text + text, usage, DONE], pause_s=0.05)
    assert answer.error == ""
    assert answer.gaps_s[1] == 0.0
    assert 0.02 < answer.gaps_s[0] < answer.finished - answer.started


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (EVENTS, "the stream broke off after 3 pieces"),
        (b"", "the stream broke off after 0 pieces"),
        (DONE, "no usage"),
        (b'data: {"error": {"message": "no"}}\n\n' + DONE, '{"message": "no"}'),
        (b"data: {nonsense\n\n", "JSON is malformed"),
        (b'data: {"choices": 3}\n\n', "Expected `array`"),
    ],
)
async def test_answers_that_are_not_whole(body: bytes, error: str) -> None:
    answer = await ask_one([HEAD + b"\r\n", body])
    assert error in answer.error


async def test_a_connection_that_is_lost_within_a_chunk() -> None:
    answer = await ask_one([HEAD + b"transfer-encoding: chunked\r\n\r\n", b"fff\r\n" + EVENTS])
    assert answer.error == "the stream broke off after 3 pieces"


async def test_another_number_of_tokens_is_an_error() -> None:
    answer = await ask_one([HEAD + b"\r\n" + EVENTS + DONE], num_tokens=4)
    assert answer.error == "3 tokens in place of 4"


async def test_a_refusal_is_told() -> None:
    answer = await ask_one([b"HTTP/1.1 404 No\r\ncontent-length: 7\r\n\r\nno such"])
    assert answer.error == "status 404: no such"


async def test_what_is_no_http() -> None:
    answer = await ask_one([b"hello\r\n\r\n"])
    assert answer.error.startswith("HttpParser")


async def test_a_server_that_says_nothing() -> None:
    answer = await ask_one([b""], pause_s=5.0, timeout_s=0.05)
    assert answer.error == "TimeoutError"


async def test_nobody_listens() -> None:
    with_nobody = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = with_nobody.sockets[0].getsockname()[1]
    with_nobody.close()
    await with_nobody.wait_closed()
    answer = await ask(Endpoint("127.0.0.1", port), "/completions", {}, num_tokens=1)
    assert answer.error.startswith("ConnectionRefusedError")
    assert answer.text_times == ()


def test_endpoints() -> None:
    assert Endpoint.of("http://127.0.0.1:8000/v1") == Endpoint("127.0.0.1", 8000, "/v1")
    assert Endpoint.of("http://box/v1/") == Endpoint("box", 80, "/v1")
    assert Endpoint("box", 1).url == "http://box:1/v1"
    for wrong in ("https://box/v1", "box:8000", "http://"):
        with pytest.raises(ValueError, match="is not a URL like"):
            Endpoint.of(wrong)
