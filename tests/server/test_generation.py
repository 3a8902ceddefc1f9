"""What ends a generation: the engine, a stop string, a fault, a bug, and clients that leave."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Message

from engine.errors import EngineDead, InvariantViolated
from engine.fake import FakeEngine, Script
from engine.messages import EngineRequest, Event, Fault, Finished, SamplingParams, TokenEvent
from protocol.errors import Internal
from server import streaming
from server.app import create_app
from server.generation import Generation
from server.output_text import TextOptions
from server.request_record import RequestRecord
from tests.server.scripted_app import App, events_of, ids_of, saying
from tests.server.small_app import byte_tokenizer, small_state

TOKENIZER = byte_tokenizer()
FOREVER = saying("a", pause_s=60)


def generation(engine: FakeEngine, *stops: str, n: int = 1, candidates: int = 1) -> Generation:
    requests = [
        EngineRequest(id=f"r-{i}", prompt_token_ids=[1, 2], sampling=SamplingParams(max_tokens=9))
        for i in range(n)
    ]
    metrics = small_state(engine=engine).metrics
    timer = metrics.request_started(RequestRecord({"type": "http"}), "/x", "chat", "m")
    return Generation(engine, requests, TOKENIZER, TextOptions(stops), timer, candidates, set())


Sent = tuple[int, str, str | None]


async def drain(running: Generation) -> list[list[Sent]]:
    """Run to the end; index, text and finish reason of every delta, by batch."""
    batches: list[list[Sent]] = []
    while (deltas := await running.next_deltas()) is not None:
        batches.append([(index, delta.text, delta.finish_reason) for index, delta in deltas])
    running.close()
    return [batch for batch in batches if batch]


async def until(condition: object) -> None:
    """Wait for a condition; the test's own time limit ends a wait in vain."""
    assert callable(condition)
    while not condition():
        await asyncio.sleep(0.001)


async def test_events_that_are_there_come_together() -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        for text in "abc":
            yield TokenEvent(request.id, ids_of(text))
        yield Finished(request.id, "length", num_output_tokens=3)

    batches = await drain(generation(FakeEngine(script=script)))
    assert batches == [[(0, "a", None), (0, "b", None), (0, "c", None), (0, "", "length")]]


async def test_usage_counts_a_prompt_once() -> None:
    engine = FakeEngine(script=saying("ab", num_cached_tokens=1))
    running = generation(engine, n=4, candidates=2)
    await drain(running)
    usage = running.usage()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 12, 16)
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert engine.aborted == []


async def test_a_stop_string_aborts_in_the_engine_and_waits_for_its_end() -> None:
    engine = FakeEngine(script=saying("aST", "OP", "never", pause_s=0.001))
    running = generation(engine, "STOP")
    batches = await drain(running)
    assert [delta for batch in batches for delta in batch] == [(0, "a", None), (0, "", "stop")]
    assert engine.aborted == ["r-0"]
    assert engine.stats().num_running == 0
    assert running.usage().completion_tokens == 5


async def test_cached_tokens_after_a_stop_string() -> None:
    """They come with the terminal event, which the fake engine's abort leaves empty."""

    class Engine(FakeEngine):
        async def generate(self, request: EngineRequest) -> AsyncIterator[Event]:
            yield TokenEvent(request.id, ids_of("STOP"))
            yield Finished(request.id, "abort", num_cached_tokens=2, num_output_tokens=9)

    running = generation(Engine(), "STOP")
    await drain(running)
    usage = running.usage()
    assert (usage.prompt_tokens_details.cached_tokens, usage.completion_tokens) == (2, 4)


async def test_what_came_before_a_fault_is_delivered() -> None:
    script = saying("ab", reason="error", fault=Fault("internal", "x"))
    running = generation(FakeEngine(script=script))
    assert await running.next_deltas()
    with pytest.raises(Internal):
        while True:
            await running.next_deltas()
    with pytest.raises(Internal):
        await running.next_deltas()
    running.close()


async def test_a_fault_of_one_choice_ends_the_others() -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        if request.id == "r-1":
            yield Finished(request.id, "error", fault=Fault("numerical_error", "x"))
        yield 60

    engine = FakeEngine(script=script)
    running = generation(engine, n=3)
    with pytest.raises(Internal):
        await drain(running)
    running.close()
    assert sorted(engine.aborted) == ["r-0", "r-2"]
    await until(lambda: engine.stats().num_running == 0)


@pytest.mark.parametrize("error", [RuntimeError("bug"), EngineDead("gone")])
async def test_an_exception_of_the_client(error: Exception) -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        raise error
        yield 0

    running = generation(FakeEngine(script=script))
    with pytest.raises(type(error)):
        await drain(running)
    running.close()


async def test_a_sequence_without_an_end() -> None:
    class Engine(FakeEngine):
        async def generate(self, request: EngineRequest) -> AsyncIterator[Event]:
            yield TokenEvent(request.id, ids_of("a"))

    running = generation(Engine())
    with pytest.raises(InvariantViolated):
        await drain(running)
    running.close()


async def test_close_aborts_without_awaiting() -> None:
    engine = FakeEngine(script=FOREVER)
    running = generation(engine, n=2)
    await running.next_deltas()
    running.close()
    assert sorted(engine.aborted) == ["r-0", "r-1"]
    running.close()
    assert len(engine.aborted) == 2
    await until(lambda: engine.stats().num_running == 0)


async def test_close_before_anything_ran() -> None:
    engine = FakeEngine(script=FOREVER)
    generation(engine).close()
    await asyncio.sleep(0)
    assert engine.requests == []


def outcome(app: App) -> list[str]:
    text = app.state.metrics.render()[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("qwen_serve_requests_total")]
    return [line.split('outcome="')[1].split('"')[0] for line in lines]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (saying("a"), "stop"),
        (saying("a", reason="length"), "length"),
        (saying(reason="error", fault=Fault("internal", "x")), "internal"),
        (saying("a", reason="error", fault=Fault("engine_dead", "x")), "engine_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_outcomes_are_counted(script: Script, expected: str, stream: bool) -> None:
    app = App(script)
    await app.chat(stream=stream)
    assert outcome(app) == [expected]


async def leave(app: App, *, stream: bool, after_chunks: int) -> list[Message]:
    """Call the application as a server does; the client is gone after some body messages."""
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": "alias", "messages": messages, "stream": stream, "n": 2}).encode()
    sent: list[Message] = []
    gone, has_read = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal has_read
        if not has_read:
            has_read = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if sum(one["type"] == "http.response.body" for one in sent) >= after_chunks:
            gone.set()

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    if after_chunks == 0:
        asyncio.get_running_loop().call_later(0.01, gone.set)
    await create_app(app.state)(scope, receive, send)
    return sent


@pytest.mark.parametrize(("stream", "after_chunks"), [(True, 1), (False, 0)])
async def test_a_client_that_leaves(stream: bool, after_chunks: int) -> None:
    app = App(FOREVER)
    sent = await leave(app, stream=stream, after_chunks=after_chunks)
    assert len(app.engine.aborted) == 2
    assert outcome(app) == ["abort"]
    assert sent[0]["status"] == (200 if stream else 499)
    await until(lambda: app.engine.stats().num_running == 0)


async def test_a_client_that_leaves_before_the_first_token() -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        yield 60

    app = App(script)
    await leave(app, stream=True, after_chunks=0)
    assert len(app.engine.aborted) == 2


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    """The application under uvicorn; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(app.state), log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_that_closes(stream: bool) -> None:
    app = App(FOREVER)
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        messages = [{"role": "user", "content": "hi"}]
        body = json.dumps({"model": "alias", "messages": messages, "stream": stream}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        if stream:
            await reader.readuntil(b'"content":"a"')
        await until(lambda: app.engine.stats().num_running == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: app.engine.stats().num_running == 0)
    assert len(app.engine.aborted) == 1


async def test_a_fault_in_mid_stream() -> None:
    app = App(saying("ab", "c", reason="error", fault=Fault("engine_dead", "The engine died.")))
    response = await app.chat(stream=True)
    assert response.status_code == 200
    events = events_of(response.text)
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["", "ab", "c"]
    assert events[-1] == {
        "error": {
            "message": "The engine died.",
            "type": "server_error",
            "param": None,
            "code": "engine_unavailable",
        }
    }
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("error", [RuntimeError("secret"), InvariantViolated("secret")])
async def test_a_bug_in_mid_stream(error: Exception) -> None:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        yield TokenEvent(request.id, ids_of("a"))
        yield 0.001
        raise error

    response = await App(script).chat(stream=True)
    events = events_of(response.text)
    assert events[-1]["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert (await App(script).chat()).status_code == 500


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SEND_TIMEOUT_S", 0.4)
    ids = ids_of("a" * 500)

    def endless(request: EngineRequest) -> Iterator[Event | float]:
        while True:
            yield TokenEvent(request.id, ids)
            yield 0

    app = App(endless)
    body = json.dumps({"model": "alias", "prompt": "a", "stream": True, "max_tokens": 90}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    async with serving(app) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(head.encode() + body)
            await until(lambda: app.engine.aborted)
            assert not app.state.live
