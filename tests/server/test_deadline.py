"""Requests that their clients do not wait for any longer."""

import asyncio
import math
from collections.abc import Callable, Iterator

import pytest
from starlette.datastructures import Headers

from engine.messages import EngineRequest, EngineStats, Event, TokenEvent
from protocol.errors import InvalidRequest, Overloaded
from server import deadline as deadline_module
from server.admission import Admission
from server.deadline import Deadline
from tests.server.scripted_app import App, events_of, ids_of

BODY = {"model": "alias", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def silent(request: EngineRequest) -> Iterator[Event | float]:
    yield 3600.0


def endless(request: EngineRequest) -> Iterator[Event | float]:
    while True:
        yield TokenEvent(request.id, ids_of("a"))
        yield 0.002


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline_module, "_GRACE_S", 0.0)


def ended(app: App) -> bool:
    return app.engine.stats().num_running == 0 and len(app.engine.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("header", ["x-request-timeout", "x-stainless-read-timeout"])
async def test_what_does_not_begin_in_time_is_a_timeout(stream: bool, header: str) -> None:
    app = App(silent)
    response = await app.post(CHAT, {**BODY, "stream": stream}, **{header: "0.05"})
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout", "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    await asyncio.sleep(0)
    assert ended(app)


@pytest.mark.parametrize("header", ["x-request-timeout", "x-stainless-read-timeout"])
async def test_a_whole_answer_must_end_in_time(header: str) -> None:
    app = App(endless)
    response = await app.post(CHAT, BODY, **{header: "0.05"})
    assert response.status_code == 504
    await asyncio.sleep(0)
    assert ended(app)


async def test_a_stream_ends_in_an_error_when_its_time_is_over() -> None:
    app = App(endless)
    response = await app.post(CHAT, {**BODY, "stream": True}, **{"x-request-timeout": "1"})
    assert response.status_code == 200
    *chunks, last = events_of(response.text)
    assert len(chunks) > 1
    assert last["error"]["code"] == "deadline_exceeded"
    await asyncio.sleep(0)
    assert ended(app)


class Watched:
    """A generation that only remembers."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.callbacks: list[Callable[[], None]] = []

    def end(self, error: Exception) -> None:
        self.errors.append(error)

    def on_close(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)


async def test_behind_the_first_event_of_a_stream_the_sdk_watches_for_itself() -> None:
    begun, late, closed = Watched(), Watched(), Watched()
    for watched in (begun, late, closed):
        deadline = Deadline(read_s=0.01)
        deadline.watch(watched, stream=True)
        if watched is begun:
            deadline.has_begun()
        if watched is closed:
            for callback in watched.callbacks:
                callback()
    while not late.errors:
        await asyncio.sleep(0.01)
    assert (len(begun.errors), len(late.errors), len(closed.errors)) == (0, 1, 0)


async def test_the_shorter_one_counts() -> None:
    app = App(silent)
    headers = {"x-request-timeout": "3600", "x-stainless-read-timeout": "0.05"}
    for stream in (False, True):
        response = await app.post(CHAT, {**BODY, "stream": stream}, **headers)
        assert response.status_code == 504


async def test_the_sdk_is_given_a_moment_to_give_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(deadline_module, "_GRACE_S", 3600.0)
    Deadline(read_s=0.001).watch(watched, stream=False)
    Deadline(whole_s=0.01).watch(watched, stream=False)
    while not watched.errors:
        await asyncio.sleep(0.01)
    assert len(watched.errors) == 1
    for callback in watched.callbacks:
        callback()


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "1e", "5s", "0x10", "inf?"])
async def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="x-request-timeout"):
        Deadline.of(Headers({"x-request-timeout": text}))
    lenient = Deadline.of(Headers({"x-stainless-read-timeout": text}))  # not of the user's making
    assert lenient.begin_within_s == math.inf


async def test_long_times() -> None:
    for text in ("inf", "1e300", "604801"):
        assert Deadline.of(Headers({"x-request-timeout": text})).begin_within_s == 604800


@pytest.mark.parametrize("stream", [False, True])
async def test_no_timer_outlives_its_request(stream: bool) -> None:
    app = App()
    headers = {"x-request-timeout": "3000", "x-stainless-read-timeout": "2000"}
    assert (await app.post(CHAT, {**BODY, "stream": stream}, **headers)).status_code == 200
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in timers if not timer.cancelled() and "end" in repr(timer)] == []


def test_who_cannot_be_served_in_time_is_told_at_once() -> None:
    now, stats = 0.0, EngineStats(num_waiting=40)
    admission = Admission(lambda: stats, 1000, lambda: now)
    admission.check(1.0)  # no rate is known yet
    for num_finished in range(0, 100, 10):  # ten a second
        now, stats = num_finished / 10, EngineStats(num_waiting=40, num_finished=num_finished)
        admission.check()
    admission.check(2.1)  # four seconds are expected, and may turn out to be two
    with pytest.raises(Overloaded, match=r"wait for some 4 s, longer than the 1\.5 s") as caught:
        admission.check(1.5)
    assert caught.value.headers == {"retry-after": "3", "retry-after-ms": "2500"}
    stats = EngineStats(num_waiting=0, num_finished=100)
    admission.check(0.001)


async def test_the_queue_is_asked_about_before_anything_is_computed() -> None:
    app = App(silent)
    told: list[float] = []
    app.state.admission.check = told.append  # type: ignore[method-assign,assignment]
    await app.post(CHAT, BODY, **{"x-request-timeout": "0.01", "x-stainless-read-timeout": "7"})
    await app.post(
        "/v1/completions", {"model": "alias", "prompt": "a"}, **{"x-request-timeout": "0.02"}
    )
    assert told == [0.01, 0.02]
