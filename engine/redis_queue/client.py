"""The queue as a server sees it; see engine.client.EngineClient.

Requests go to the engine that has their prefix cached, else into a stream of which engines take
what they have room for. The client keeps what each request has said (engine/flight.py), so that
any engine can go on where one was lost. Each submission of a request has an id of its own: what an
engine says of an older one is not listened to.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from engine.errors import EngineDead
from engine.flight import Flight
from engine.messages import EngineInfo, EngineRequest, EngineStats, Event, Finished, TokenEvent
from engine.redis_queue import frames
from engine.redis_queue.connection import RETRY_S, connect_async
from engine.redis_queue.engines import Engines
from engine.redis_queue.frames import Left, Report, Submission, Taken, Withdrawal
from engine.redis_queue.members import BEAT_S, DEAD_S
from engine.redis_queue.names import split_address
from engine.redis_queue.placement import REMEMBERED_S, choose, prefix_digests

logger = logging.getLogger(__name__)

RESUME_TIMEOUT_S = 120.0  # how long requests wait for an engine, or for Redis
_BLOCK_MS = 1000
_READ_COUNT = 64
_SUBMIT_COUNT = 64
_COMPLAIN_S = 5.0
_OWN_STREAM_S = 3600  # after which the stream of a server that is gone is gone, too
_MAX_WITHDRAWN = 10_000

_NO_ENGINE = "No engine is connected to the queue."


@dataclass(slots=True)
class _Journey:
    """A request on its way through engines."""

    flight: Flight
    digests: list[str]
    attempt: int = 0
    engine: str | None = None  # that has taken it
    entry: tuple[str, bytes] | None = None  # stream and id, from its submission until it is taken
    submitted_s: float = 0.0
    is_missed: bool = False  # its entry was gone at the last look, and nobody had taken it


class RedisClient:
    """One server process's place in the queue at `address` (names.join_address).

    Attributes:
        on_resume: called with the number of requests that another engine goes on with.
    """

    def __init__(self, address: str, resume_timeout_s: float = RESUME_TIMEOUT_S) -> None:
        self.on_resume: Callable[[int], None] = lambda num_requests: None
        url, self._names = split_address(address)
        self._reading: Any = connect_async(url)
        self._writing: Any = connect_async(url)
        self._resume_timeout_s = resume_timeout_s
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._own = self._names.to_server(self.name)
        self._engines = Engines()
        self._numbers: dict[str, int] = {}  # of the last report of each engine
        self._journeys: dict[str, _Journey] = {}
        self._unsent: dict[str, _Journey] = {}  # to be submitted
        self._taken_back: list[tuple[str, bytes]] = []  # entries to be deleted
        self._withdrawn: dict[tuple[str, str], float] = {}  # engine and attempt -> when
        self._withdrawals: list[tuple[str, str]] = []  # to be sent
        self._holders: list[tuple[str, list[str]]] = []  # to be remembered
        self._has_output = asyncio.Event()
        self._num_waiting = 0  # in the stream for any engine
        self._num_unseen = 0  # submitted since that was read
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._problem: str | None = _NO_ENGINE
        self._problem_since_s = time.monotonic()
        self._complained_s = 0.0
        self._is_closed = False

    async def start(self) -> EngineInfo:
        """Join the queue and wait for the first engine."""
        for work in (self._beat, self._write, self._read):
            self._tasks.append(asyncio.create_task(work()))
        await self._ready.wait()
        if self._engines.info is None:
            raise EngineDead("The connection to the queue was closed.")
        return self._engines.info

    async def generate(self, request: EngineRequest) -> AsyncIterator[Event]:
        """Submit a request and yield its events; see EngineClient."""
        flight = Flight(request)
        journey = _Journey(flight, prefix_digests(request))
        self._journeys[request.id] = journey
        if self._problem is not None and not self._may_wait():
            flight.give_up(self._problem)
        else:
            self._submit(request.id, journey)
        try:
            is_finished = False
            while not is_finished:
                event = await flight.events.get()
                is_finished = isinstance(event, Finished)
                yield event
        finally:
            del self._journeys[request.id]
            if not flight.has_ended:
                self._take_back(request.id, journey)

    def abort(self, request_id: str) -> None:
        """Ask for a request to be stopped; an unknown id is a no-op."""
        journey = self._journeys.get(request_id)
        if journey is None:
            return
        journey.flight.abort()
        is_taken = journey.engine is not None
        self._take_back(request_id, journey)
        if not is_taken:  # no engine will say how it ended
            journey.flight.lose_engine()

    def stats(self) -> EngineStats:
        """Of all engines together, with what waits for any of them."""
        total = self._engines.total_stats()
        num_waiting = total.num_waiting + self._num_waiting + self._num_unseen
        return msgspec.structs.replace(total, num_waiting=num_waiting)

    def health(self) -> str | None:
        """None when an engine is there, else one sentence saying what is wrong."""
        return self._problem

    def silent_s(self) -> float:
        """0: whoever runs the engines sees to those that hang; this server is well without them."""
        return 0.0

    async def aclose(self) -> None:
        """Leave the queue; what was running is aborted."""
        self._is_closed = True
        self._ready.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for request_id, journey in self._journeys.items():
            self._take_back(request_id, journey)
        try:
            async with asyncio.timeout(2):
                await self._flush()
                await self._writing.hdel(self._names.servers, self.name)
                await self._writing.delete(self._own)
        except (redis.RedisError, TimeoutError):
            pass  # the engines will notice
        await self._reading.aclose()
        await self._writing.aclose()

    # ---- what happens to a request ----

    def _submit(self, request_id: str, journey: _Journey) -> None:
        journey.attempt += 1
        journey.engine = None
        journey.entry = None
        journey.is_missed = False
        self._unsent[request_id] = journey
        self._has_output.set()

    def _take_back(self, request_id: str, journey: _Journey) -> None:
        """No engine is to go on with it, wherever it is."""
        self._unsent.pop(request_id, None)
        if journey.engine is not None:
            self._withdraw(journey.engine, frames.attempt_id(request_id, journey.attempt))
        elif journey.entry is not None:
            self._taken_back.append(journey.entry)
            self._has_output.set()

    def _withdraw(self, engine: str, attempt: str) -> None:
        """Tell an engine; again when it has not listened for a while."""
        now = time.monotonic()
        if now - self._withdrawn.get((engine, attempt), 0.0) < DEAD_S:
            return
        self._withdrawn.pop((engine, attempt), None)
        self._withdrawn[engine, attempt] = now
        while len(self._withdrawn) > _MAX_WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]
        self._withdrawals.append((engine, attempt))
        self._has_output.set()

    def _lose(self, engines: Iterable[str]) -> None:
        """What these engines had goes to others."""
        lost = set(engines)
        streams = {self._names.to_engine(engine) for engine in lost}
        num_resumed = 0
        for request_id, journey in list(self._journeys.items()):
            if journey.flight.has_ended:
                continue
            if journey.engine in lost:
                journey.flight.lose_engine()
                num_resumed += 1
            elif journey.entry is None or journey.entry[0] not in streams:
                continue
            if not journey.flight.has_ended:
                self._submit(request_id, journey)
        if num_resumed:
            logger.warning("requests resumed", extra={"fields": {"num_requests": num_resumed}})
            self.on_resume(num_resumed)

    def _may_wait(self) -> bool:
        return time.monotonic() - self._problem_since_s < self._resume_timeout_s

    def _set_problem(self, problem: str | None) -> None:
        if problem is None or self._problem is None:
            self._problem_since_s = time.monotonic()
        self._problem = problem
        if problem is not None and not self._may_wait():
            for journey in self._journeys.values():
                journey.flight.give_up(problem)

    # ---- reports ----

    async def _read(self) -> None:
        last: bytes | str = "0"
        while not self._is_closed:  # a cancellation can come out of redis-py as a time-out
            try:
                reply = await self._reading.xread({self._own: last}, _READ_COUNT, _BLOCK_MS)
            except redis.RedisError as exc:
                self._complain(exc)
                await asyncio.sleep(RETRY_S)
                continue
            for entry_id, fields in _entries(reply):
                last = entry_id
                try:
                    self._handle(frames.report(fields))
                except msgspec.DecodeError as exc:
                    logger.error("dropped an entry that is not a message: %s", exc)
                self._taken_back.append((self._own, entry_id))

    def _handle(self, report: Report) -> None:
        engine = report.engine
        self._engines.hear(engine)
        last = self._numbers.get(engine, 0)
        if report.number <= last:
            return  # written twice, as it was not known whether it had been written
        self._numbers[engine] = report.number
        if report.number > last + 1:
            logger.warning("reports lost", extra={"fields": {"engine": engine}})
            self._lose([engine])
        for message in report.messages:
            match message:
                case Taken(ids=ids):
                    for attempt in ids:
                        self._note_taken(engine, attempt)
                case Left():
                    self._engines.leave(engine)
                    self._lose([engine])
                case _:
                    self._take_event(engine, message)

    def _note_taken(self, engine: str, attempt: str) -> None:
        journey = self._current(attempt)
        if journey is None or journey.engine not in (None, engine):
            self._withdraw(engine, attempt)
            return
        journey.engine = engine
        journey.entry = None
        self._unsent.pop(frames.request_id_of(attempt), None)
        if journey.digests:
            self._holders.append((engine, journey.digests))
            self._has_output.set()

    def _take_event(self, engine: str, event: TokenEvent | Finished) -> None:
        journey = self._current(event.id)
        if journey is not None and journey.engine == engine:
            journey.flight.take(msgspec.structs.replace(event, id=frames.request_id_of(event.id)))
        elif isinstance(event, TokenEvent):
            self._withdraw(engine, event.id)

    def _current(self, attempt: str) -> _Journey | None:
        """The request whose newest attempt this is."""
        request_id = frames.request_id_of(attempt)
        journey = self._journeys.get(request_id)
        if journey is None or frames.attempt_id(request_id, journey.attempt) != attempt:
            return None
        return journey

    # ---- submissions ----

    async def _write(self) -> None:
        while not self._is_closed:
            await self._has_output.wait()
            self._has_output.clear()
            try:
                await self._flush()
            except redis.RedisError as exc:
                self._complain(exc)
                self._has_output.set()
                await asyncio.sleep(RETRY_S)

    async def _flush(self) -> None:
        """Write what there is to be written; what fails is kept, to be written again."""
        names = self._names
        batch = list(self._unsent.items())[:_SUBMIT_COUNT]
        places = await self._places([journey for _, journey in batch])
        withdrawals, taken_back = self._withdrawals.copy(), self._taken_back.copy()
        holders = self._holders.copy()
        attempts = [journey.attempt for _, journey in batch]
        async with self._writing.pipeline(transaction=True) as pipe:
            for (request_id, journey), place in zip(batch, places, strict=True):
                wire_id = frames.attempt_id(request_id, journey.attempt)
                request = msgspec.structs.replace(journey.flight.request(), id=wire_id)
                pipe.xadd(place, frames.entry(Submission(self.name, request)))
            for engine, attempt in withdrawals:
                pipe.xadd(names.to_engine(engine), frames.entry(Withdrawal(self.name, [attempt])))
            for stream, entry_id in taken_back:
                pipe.xdel(stream, entry_id)
            for engine, digests in holders:
                for digest in digests:
                    pipe.set(names.prefix(digest), engine, ex=REMEMBERED_S)
            replies = await pipe.execute()
        del self._withdrawals[: len(withdrawals)], self._taken_back[: len(taken_back)]
        del self._holders[: len(holders)]
        for i, (request_id, journey) in enumerate(batch):
            entry = (places[i], replies[i])
            is_current = journey.attempt == attempts[i]
            if is_current and self._unsent.get(request_id) is journey:
                del self._unsent[request_id]
                journey.entry = entry
                journey.submitted_s = time.monotonic()
                self._num_unseen += 1
            elif journey.engine is None or not is_current:  # taken back meanwhile
                self._taken_back.append(entry)
        if self._unsent or self._taken_back:
            self._has_output.set()

    async def _places(self, journeys: list[_Journey]) -> list[str]:
        """The stream to put each request into."""
        loads = self._engines.loads()
        keys = [self._names.prefix(digest) for each in journeys for digest in each.digests]
        known = iter(
            await self._writing.mget(keys) if keys and len(loads) > 1 else [None] * len(keys)
        )
        places = []
        for journey in journeys:
            found = [next(known) for _ in journey.digests]
            holders = [name.decode() if name is not None else None for name in found]
            engine = choose(holders, loads)
            if engine is None:
                places.append(self._names.waiting)
            else:
                loads[engine].num_taken += 1
                places.append(self._names.to_engine(engine))
        return places

    # ---- beats ----

    async def _beat(self) -> None:
        number = 0
        while not self._is_closed:
            number += 1
            try:
                await self._look_around(number)
            except redis.RedisError as exc:
                self._complain(exc)
                self._set_problem("The queue cannot be reached.")
            await asyncio.sleep(BEAT_S)

    async def _look_around(self, number: int) -> None:
        names = self._names
        async with self._writing.pipeline(transaction=False) as pipe:
            pipe.hset(names.servers, self.name, number)
            pipe.expire(self._own, _OWN_STREAM_S)
            pipe.hgetall(names.engines)
            pipe.xlen(names.waiting)
            *_, beats, num_waiting = await pipe.execute()
        self._num_waiting, self._num_unseen = num_waiting, 0
        self._engines.update(beats)
        holding = {each.engine for each in self._journeys.values() if each.engine is not None}
        holding |= {name for name in self._engines.known if self._is_sent_to(name)}
        if dead := [name for name in holding if self._engines.is_dead(name)]:
            self._lose(dead)
        await self._find_missing()
        if gone := self._engines.forget_old():
            await self._writing.hdel(names.engines, *gone)
            await self._writing.delete(*(names.to_engine(name) for name in gone))
        if self._taken_back:
            self._has_output.set()
        self._set_problem(None if self._engines.loads() else _NO_ENGINE)
        if self._engines.info is not None and self._problem is None:
            self._ready.set()

    def _is_sent_to(self, engine: str) -> bool:
        stream = self._names.to_engine(engine)
        return any(each.entry and each.entry[0] == stream for each in self._journeys.values())

    async def _find_missing(self) -> None:
        """Submit again what Redis has lost: neither is it in a stream, nor has anyone taken it."""
        now = time.monotonic()
        waiting = [
            (request_id, journey, journey.entry)
            for request_id, journey in self._journeys.items()
            if journey.entry is not None and now - journey.submitted_s > DEAD_S
        ]
        if not waiting:
            return
        async with self._writing.pipeline(transaction=False) as pipe:
            for _, _, (stream, entry_id) in waiting:
                pipe.xrange(stream, entry_id, entry_id)
            found = await pipe.execute()
        for (request_id, journey, entry), entries in zip(waiting, found, strict=True):
            if journey.entry != entry:
                continue  # taken meanwhile
            if not entries and journey.is_missed:
                self._submit(request_id, journey)
            else:
                journey.is_missed = not entries

    def _complain(self, problem: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_s > _COMPLAIN_S:
            self._complained_s = now
            logger.warning("the queue cannot be reached: %s", problem)


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Of the one stream in an answer of XREAD, which is a list or, in RESP3, a mapping."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [entry for some in reply.values() for part in some for entry in part]
    return [entry for _, entries in reply for entry in entries]
