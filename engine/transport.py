"""The queue as an engine sees it: a ZeroMQ ROUTER with one peer for each server process. Torch-
free. Between machines it is Redis: engine/redis_queue/transport.py.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec
import zmq

from engine import codec
from engine.messages import (
    Abort,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Finished,
    FromEngine,
    Hello,
    TokenEvent,
)
from engine.redis_queue.names import is_redis

logger = logging.getLogger(__name__)

# a client that lets this many frames pile up unread is treated as gone
MAX_UNSENT_FRAMES = 100_000


class Transport(Protocol):
    """How an engine is reached. Used from one thread; nothing but `wait` and `open` blocks."""

    def open(self, info: EngineInfo, max_num_seqs: int) -> None:
        """The model is loaded: take requests. Raises EngineError where that cannot be."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when a message is there or the time is over."""
        ...

    def receive(self) -> list[tuple[bytes, EngineRequest | Abort]]:
        """All (client, message) that have arrived; a foreign frame is logged and dropped."""
        ...

    def send(self, client: bytes, messages: Sequence[TokenEvent | Finished]) -> None:
        """Send events; those for a client that is gone are dropped."""
        ...

    def publish(self, stats: EngineStats) -> None:
        """Tell all clients."""
        ...

    def gone(self) -> list[bytes]:
        """Clients that have gone since the last call: nobody reads their requests' events."""
        ...

    def close(self) -> None: ...


def transport_at(address: str) -> Transport:
    """The engine's end of the queue: ipc://... or what names.join_address has made."""
    if not is_redis(address):
        return RouterTransport(address)
    from engine.redis_queue.transport import RedisTransport  # its library takes a while to import

    return RedisTransport(address)


class RouterTransport:
    """Clients are named by their ZeroMQ identity; see Transport."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNSENT_FRAMES)
        self._socket.bind(address)
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._greeted: set[bytes] = set()
        self._gone: set[bytes] = set()

    def open(self, info: EngineInfo, max_num_seqs: int) -> None:
        self._info = info

    def wait(self, timeout_s: float) -> None:
        self._socket.poll(int(timeout_s * 1000))

    def receive(self) -> list[tuple[bytes, EngineRequest | Abort]]:
        messages: list[tuple[bytes, EngineRequest | Abort]] = []
        while self._socket.poll(0):
            client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            for frame in frames:
                messages += self._messages_of(client, frame)
        return messages

    def send(self, client: bytes, messages: Sequence[FromEngine]) -> None:
        try:
            self._socket.send_multipart([client, codec.encode(messages)], zmq.NOBLOCK)
        except zmq.ZMQError as exc:
            if exc.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._greeted.discard(client)
            self._gone.add(client)

    def publish(self, stats: EngineStats) -> None:
        self._stats = stats
        for client in list(self._greeted):
            self.send(client, [stats])

    def gone(self) -> list[bytes]:
        gone, self._gone = self._gone, set()
        return list(gone)

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _messages_of(
        self, client: bytes, frame: bytes
    ) -> list[tuple[bytes, EngineRequest | Abort]]:
        try:
            decoded = codec.decode_to_engine(frame)
        except msgspec.DecodeError as exc:
            logger.error("dropped a frame that is not a message: %s", exc)
            return []
        if any(isinstance(message, Hello) for message in decoded):
            self._greet(client)
        return [(client, message) for message in decoded if not isinstance(message, Hello)]

    def _greet(self, client: bytes) -> None:
        assert self._info is not None, "open() comes before receive()"
        self._greeted.add(client)
        self.send(client, [self._info, self._stats])
