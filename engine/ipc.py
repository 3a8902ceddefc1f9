"""The queue as a server sees it: an EngineClient over ZeroMQ. Torch-free.

A DEALER socket talks to the engine's ROUTER (engine/process.py). A socket monitor reports at once
when the engine goes away. Its requests then wait for the next engine that binds the same address,
which is greeted and goes on with them (engine/flight.py).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from engine import codec
from engine.errors import EngineDead
from engine.flight import Flight
from engine.messages import (
    Abort,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Event,
    Finished,
    FromEngine,
    Hello,
    ToEngine,
)

logger = logging.getLogger(__name__)

RECONNECT_MS = 50
RESUME_TIMEOUT_S = 120.0  # how long requests wait for the next engine


class IpcClient:
    """One server process's connection to one engine; see engine.client.EngineClient.

    Attributes:
        on_resume: called with the number of requests that another engine goes on with.
    """

    def __init__(self, address: str, resume_timeout_s: float = RESUME_TIMEOUT_S) -> None:
        self.on_resume: Callable[[int], None] = lambda num_requests: None
        self._address = address
        self._resume_timeout_s = resume_timeout_s
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._flights: dict[str, Flight] = {}
        self._info: EngineInfo | None = None
        self._ready = asyncio.Event()
        self._stats = EngineStats()
        self._num_unseen = 0  # requests submitted since
        self._problem: str | None = "The engine is not ready yet."
        self._is_waiting = False  # for the next engine, with requests
        self._waiting_ends: asyncio.TimerHandle | None = None
        self._heard_at_s = 0.0  # when the engine last said anything

    async def start(self) -> EngineInfo:
        """Connect and wait until the engine has loaded its model."""
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        events = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED
        self._monitor = self._socket.get_monitor_socket(events)
        self._tasks = [
            asyncio.create_task(self._receive(self._socket)),
            asyncio.create_task(self._watch(self._monitor)),
        ]
        self._socket.connect(self._address)
        await self._ready.wait()
        if self._info is None:
            raise EngineDead("The connection to the engine was closed.")
        return self._info

    async def generate(self, request: EngineRequest) -> AsyncIterator[Event]:
        """Submit a request and yield its events; see EngineClient."""
        flight = Flight(request)
        if not self._flights:
            self._heard_at_s = time.monotonic()  # it had nothing to say before
        self._flights[request.id] = flight
        if self._problem is None:
            self._num_unseen += 1
            self._send([request])
        elif not self._is_waiting:
            flight.give_up(self._problem)
        try:
            is_finished = False
            while not is_finished:
                event = await flight.events.get()
                is_finished = isinstance(event, Finished)
                yield event
        finally:
            del self._flights[request.id]
            if not flight.has_ended and self._problem is None:
                self._send([Abort(request.id)])

    def abort(self, request_id: str) -> None:
        """Ask the engine to stop a request; an unknown id is a no-op."""
        flight = self._flights.get(request_id)
        if flight is None:
            return
        flight.abort()
        if self._problem is None:
            self._send([Abort(request_id)])
        else:
            flight.lose_engine()

    def stats(self) -> EngineStats:
        """The newest snapshot received, with what waits and is not in it yet."""
        if self._problem is not None:
            return msgspec.structs.replace(
                self._stats, num_running=0, num_waiting=len(self._flights)
            )
        num_waiting = self._stats.num_waiting + self._num_unseen
        return msgspec.structs.replace(self._stats, num_waiting=num_waiting)

    def health(self) -> str | None:
        """None when the engine answers, else one sentence saying what is wrong."""
        return self._problem

    def silent_s(self) -> float:
        """For how long the engine has had requests and said nothing; 0 when it has none."""
        if not self._flights:
            return 0.0
        return time.monotonic() - self._heard_at_s

    async def aclose(self) -> None:
        """Disconnect; the engine aborts what this client was running."""
        self._problem = "The connection to the engine was closed."
        self._stop_waiting()
        self._ready.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None and self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
        self._context.term()

    def _send(self, messages: Sequence[ToEngine]) -> None:
        # With nothing queued pyzmq sends at once and the future is done: no await is needed,
        # which is what lets a cancelled task abort its request.
        if self._socket is not None:
            self._socket.send(codec.encode(messages))

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frame = await socket.recv()
            try:
                messages = codec.decode_from_engine(frame)
            except msgspec.DecodeError as exc:
                logger.error("dropped a frame that is not a message: %s", exc)
                continue
            for message in messages:
                self._dispatch(message)

    def _dispatch(self, message: FromEngine) -> None:
        self._heard_at_s = time.monotonic()
        match message:
            case EngineInfo():
                self._greeted(message)
            case EngineStats():
                self._stats = message
                self._num_unseen = 0
            case _:
                # no flight: the reader has left and the abort is on its way
                if (flight := self._flights.get(message.id)) is not None:
                    flight.take(message)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())
            if event["event"] == zmq.EVENT_CONNECTED:
                self._send([Hello()])
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._lose_engine()

    def _greeted(self, info: EngineInfo) -> None:
        """An engine is there: it gets the requests that another has left."""
        self._info = info
        self._is_waiting = False
        if self._waiting_ends is not None:
            self._waiting_ends.cancel()
        self._problem = None
        self._ready.set()
        left = [flight for flight in self._flights.values() if not flight.has_ended]
        if left:
            logger.warning("requests resumed", extra={"fields": {"num_requests": len(left)}})
            self._send([flight.request() for flight in left])
            self.on_resume(len(left))

    def _lose_engine(self) -> None:
        if self._problem is not None:
            return
        self._problem = "The engine stopped; it is being restarted."
        self._is_waiting = True
        loop = asyncio.get_running_loop()
        self._waiting_ends = loop.call_later(self._resume_timeout_s, self._stop_waiting)
        for flight in self._flights.values():
            flight.lose_engine()

    def _stop_waiting(self) -> None:
        """No engine has come: nothing waits for one any more."""
        self._is_waiting = False
        assert self._problem is not None
        for flight in self._flights.values():
            flight.give_up(self._problem)
