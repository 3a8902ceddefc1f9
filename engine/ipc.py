"""The queue as a server sees it: an EngineClient over ZeroMQ. Torch-free.

A DEALER socket talks to the engine's ROUTER (engine/process.py). A socket monitor reports at once
when the engine goes away; its requests then end in a Fault, and the client greets the next engine
that binds the same address.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from engine import codec
from engine.errors import EngineDead
from engine.messages import (
    Abort,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Event,
    Fault,
    Finished,
    FromEngine,
    Hello,
    ToEngine,
)

logger = logging.getLogger(__name__)

RECONNECT_MS = 50


class IpcClient:
    """One server process's connection to one engine; see engine.client.EngineClient."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._info: EngineInfo | None = None
        self._ready = asyncio.Event()
        self._stats = EngineStats()
        self._problem: str | None = "The engine is not ready yet."

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
        if self._problem is not None:
            yield _died(request.id, self._problem)
            return
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[request.id] = queue
        is_finished = False
        try:
            self._send(request)
            while not is_finished:
                event = await queue.get()
                is_finished = isinstance(event, Finished)
                yield event
        finally:
            del self._queues[request.id]
            if not is_finished:
                self.abort(request.id)

    def abort(self, request_id: str) -> None:
        """Ask the engine to stop a request; an unknown id is a no-op."""
        if self._problem is None:
            self._send(Abort(request_id))

    def stats(self) -> EngineStats:
        """The newest snapshot received."""
        return self._stats

    def health(self) -> str | None:
        """None when the engine answers, else one sentence saying what is wrong."""
        return self._problem

    async def aclose(self) -> None:
        """Disconnect; the engine aborts what this client was running."""
        self._lose_engine("The connection to the engine was closed.")
        self._ready.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None and self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
        self._context.term()

    def _send(self, message: ToEngine) -> None:
        # With nothing queued pyzmq sends at once and the future is done: no await is needed,
        # which is what lets a cancelled task abort its request.
        if self._socket is not None:
            self._socket.send(codec.encode([message]))

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            for message in codec.decode_from_engine(await socket.recv()):
                self._dispatch(message)

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case EngineInfo():
                self._info = message
                self._problem = None
                self._ready.set()
            case EngineStats():
                self._stats = message
            case _:
                # no queue: the reader has left and the abort is on its way
                if (queue := self._queues.get(message.id)) is not None:
                    queue.put_nowait(message)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())
            if event["event"] == zmq.EVENT_CONNECTED:
                self._send(Hello())
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._lose_engine("The engine stopped; it is being restarted.")

    def _lose_engine(self, problem: str) -> None:
        self._problem = problem
        for request_id, queue in self._queues.items():
            queue.put_nowait(_died(request_id, problem))


def _died(request_id: str, message: str) -> Finished:
    return Finished(request_id, "error", fault=Fault("engine_dead", message))
