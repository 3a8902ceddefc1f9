"""What clients send byte by byte, in pieces, too large, too slowly, or to be read twice."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from engine.fake import FakeEngine
from server import http_connection
from server.http_connection import MAX_HEAD_BYTES, connection_class
from server.metrics import Metrics
from tests.waiting import DEADLINE_S, wait_until

SHORT_S = 0.2
HEAD = b"POST /echo HTTP/1.1\r\nhost: x\r\n"
UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEA\r\n"
INNER = b"GET /inner HTTP/1.1\r\nhost: x\r\n\r\n"


class Echo:
    """Answers with method, path and body; /slow waits between two halves, /large has 20 MB."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go_on = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        body, is_whole = b"", False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            is_whole = not message["more_body"]
        reply = b"%s %s %s" % (scope["method"].encode(), scope["path"].encode(), body)
        if scope["path"] == "/large":
            reply = b"x" * 20_000_000
        headers = [(b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        half = len(reply) // 2
        await send({"type": "http.response.body", "body": reply[:half], "more_body": True})
        if scope["path"] == "/slow":
            while not self.go_on.is_set():
                message = {"type": "http.response.body", "body": b"", "more_body": True}
                await send(message)
                await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": reply[half:]})


class Server:
    def __init__(self, port: int, app: Echo, server: uvicorn.Server) -> None:
        self.app = app
        self.server = server
        self._port = port

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.settimeout(DEADLINE_S)
        return connection

    def say(self, *parts: bytes) -> bytes:
        """All that comes back until the server closes; the parts are sent one by one."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.02)
            return read_all(connection)

    @property
    def num_connections(self) -> int:
        return len(self.server.server_state.connections)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # it closed while we still sent
        while data := connection.recv(1 << 20):
            answer += data
    return answer


@contextmanager
def running() -> Iterator[Server]:
    app = Echo()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=connection_class(Metrics("m", FakeEngine())),
        ws="none",
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Server(port, app, server)
    finally:
        server.should_exit = True
        app.go_on.set()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HEAD_TIMEOUT_S", "BODY_TIMEOUT_S", "WRITE_TIMEOUT_S"):
        monkeypatch.setattr(http_connection, name, SHORT_S)
    with running() as server:
        yield server


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)]


CLOSE = b"connection: close\r\n"


def test_a_request_arrives_in_any_pieces(server: Server) -> None:
    request = HEAD + CLOSE + b"content-length: 5\r\n\r\nhello"
    for size in (1, 7, 50, 1000):
        pieces = [request[i : i + size] for i in range(0, len(request), size)]
        with server.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            assert read_all(connection).endswith(b"POST /echo hello")


def test_a_wish_for_another_protocol_is_not_heard_and_the_body_is_a_body(server: Server) -> None:
    """As Java's HttpClient does by default. The body looks like a request: it must not be one."""
    body = b"content-length: %d\r\n\r\n%s" % (len(INNER), INNER)
    for parts in ((HEAD + UPGRADE + body,), (HEAD + UPGRADE + body[:30], body[30:])):
        last = b"GET /last HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n"
        answer = server.say(*parts, last)
        assert statuses(answer) == [200, 200]
        assert b"POST /echo " + INNER in answer and answer.endswith(b"GET /last ")
    assert server.app.paths == ["/echo", "/last"] * 2


def test_an_upgrade_in_chunks_and_one_in_pieces(server: Server) -> None:
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)
    head = HEAD + UPGRADE + b"transfer-encoding: chunked\r\n\r\n"
    for parts in ((head + chunks,), (head, chunks), (head[:60], head[60:], chunks[:9], chunks[9:])):
        assert server.say(*parts, INNER.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n"))
    assert server.app.paths == ["/echo", "/inner"] * 3


def test_many_upgrades_in_one_piece(server: Server) -> None:
    one = b"GET /a HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n"
    last = b"GET /b HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n"
    assert statuses(server.say(one * 1500 + last)) == [200] * 1501


SMUGGLED = {
    "both lengths": b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
    "both, the other way": b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    "two lengths": b"content-length: 5\r\ncontent-length: 3\r\n",
    "the same length twice": b"content-length: 5\r\ncontent-length: 5\r\n",
    "a list of lengths": b"content-length: 5, 5\r\n",
    "a signed length": b"content-length: +5\r\n",
    "a negative length": b"content-length: -1\r\n",
    "a hexadecimal length": b"content-length: 0x5\r\n",
    "a length of 30 digits": b"content-length: " + b"9" * 30 + b"\r\n",
    "an unknown encoding": b"transfer-encoding: xchunked\r\n",
    "chunked is not last": b"transfer-encoding: chunked, identity\r\n",
    "a space before the colon": b"transfer-encoding : chunked\r\n",
    "a folded header": b"x-a: 1\r\n content-length: 5\r\n",
    "a folded value": b"transfer-encoding:\r\n chunked\r\n",
    "a bare CR": b"x-a: 1\rtransfer-encoding: chunked\r\n",
    "a NUL": b"x-a: 1\x00\r\n",
    "a bare LF": b"x-a: 1\ntransfer-encoding: chunked\r\n",
}


@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED.keys())
@pytest.mark.parametrize("upgrade", [b"", UPGRADE], ids=["plain", "upgrade"])
def test_what_two_parsers_could_read_in_two_ways_is_refused(
    server: Server, headers: bytes, upgrade: bytes
) -> None:
    answer = server.say(HEAD + headers + upgrade + b"\r\n0\r\n\r\n" + INNER)
    assert statuses(answer) == [400]
    assert b'"type":"invalid_request_error"' in answer and b"connection: close" in answer
    assert "/inner" not in server.app.paths


@pytest.mark.parametrize("size", [b"-1", b"0x5", b"f" * 18, b"", b"5 ", b"g"], ids=str)
def test_sizes_of_chunks_that_are_none(server: Server, size: bytes) -> None:
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    assert statuses(server.say(head + size + b"\r\nhello\r\n0\r\n\r\n" + INNER)) == [400]
    assert "/inner" not in server.app.paths


@pytest.mark.parametrize(
    "line",
    [
        *(b"CONNECT x:443 HTTP/1.1", b"CONNECT /v1 HTTP/1.1", b"PRI * HTTP/2.0"),
        *(b"GET /\xff HTTP/1.1", b"\x16\x03\x01\x02\x00\x01\x00", b"A" * 5000, b"GET / HTTP/9.9"),
    ],
    ids=lambda line: repr(line[:20]),
)
def test_what_is_no_request_line(server: Server, line: bytes) -> None:
    assert statuses(server.say(line + b"\r\nhost: x\r\n\r\n")) == [400]
    assert server.app.paths == []


HEADS = {
    "one header": b"x: " + b"a" * 2_000_000,
    "many": b"".join(b"x-%d: a\r\n" % i for i in range(100_000)),
    "just too much": b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "a name": b"x" * 2_000_000,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_headers_without_end(server: Server, head: bytes) -> None:
    """The memory of a connection is bounded, whoever opens it."""
    with server.connect() as connection:
        thread = threading.Thread(target=send_quietly, args=(connection, HEAD + head))
        thread.start()
        answer = read_all(connection)
        thread.join()
    assert not answer or statuses(answer) == [431]  # a reset may overtake it
    wait_until(lambda: server.num_connections == 0)
    assert server.app.paths == []


def test_a_url_without_end(server: Server) -> None:
    assert statuses(server.say(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"))[0] in (
        400,  # httptools takes no more than 65,535 bytes
        431,
    )


def send_quietly(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.sendall(data)


def test_large_headers_are_taken(server: Server) -> None:
    head = HEAD + CLOSE + b"x: " + b"a" * (MAX_HEAD_BYTES - 200) + b"\r\ncontent-length: 2\r\n\r\n"
    assert server.say(head[:30_000], head[30_000:] + b"ok").endswith(b"POST /echo ok")


SLOW = {
    "half a line": b"GET /ec",
    "half a head": HEAD,
}


@pytest.mark.parametrize("beginning", SLOW.values(), ids=SLOW.keys())
def test_a_head_that_does_not_go_on(impatient: Server, beginning: bytes) -> None:
    assert statuses(impatient.say(beginning)) == [408]
    assert impatient.app.paths == []


@pytest.mark.parametrize("beginning", [b"", b"\r\n\r\n"], ids=["nothing", "empty lines"])
def test_a_connection_without_a_request_is_closed_in_silence(
    impatient: Server, beginning: bytes
) -> None:
    assert impatient.say(beginning) == b""
    assert impatient.num_connections == 0


def test_a_head_that_drips(impatient: Server) -> None:
    """The clock is of the whole, not of the pieces."""
    with impatient.connect() as connection:
        for i in range(1000):
            try:
                connection.sendall(b"GET / HTTP/1.1\r\n" if i == 0 else b"x-%d: a\r\n" % i)
            except OSError:
                break
            time.sleep(SHORT_S / 10)
        else:
            pytest.fail("it listens for ever")
    wait_until(lambda: impatient.num_connections == 0)


def test_a_body_that_does_not_come(impatient: Server) -> None:
    answer = impatient.say(HEAD + b"content-length: 9223372036854775807\r\n\r\nhello")
    assert statuses(answer) == [408]
    assert impatient.app.paths == ["/echo"]


def test_the_next_request_of_a_connection_is_timed_too(impatient: Server) -> None:
    first = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
    for rest in (b"GET", HEAD):
        assert statuses(impatient.say(first, rest)) == [200, 408]
    assert statuses(impatient.say(first, b"\r\n")) == [200]


def test_an_answer_may_take_its_time(impatient: Server) -> None:
    """And an empty line behind the request, which old clients send, is nothing to wait for."""
    with impatient.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")
        wait_until(lambda: impatient.app.paths)
        connection.sendall(b"\r\n")
        time.sleep(3 * SHORT_S)
        impatient.app.go_on.set()
        assert read_all(connection).endswith(b"GET /slow ")


def test_rubbish_behind_a_request_does_not_get_into_its_answer(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        wait_until(lambda: server.app.paths)
        connection.sendall(b"\x00\x00 rubbish\r\n\r\n")
        answer = read_all(connection)
    assert statuses(answer) == [200] and b"error" not in answer


@pytest.mark.parametrize("header", [b"", CLOSE], ids=["keep alive", "close"])
def test_a_client_that_does_not_read(impatient: Server, header: bytes) -> None:
    with impatient.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n")
        wait_until(lambda: impatient.app.paths)
        wait_until(lambda: impatient.num_connections == 0)
