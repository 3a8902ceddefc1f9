"""The queue as the engine sees it: a ZeroMQ ROUTER with one peer for each server process. Torch-
free.
"""

import logging
from collections.abc import Sequence

import msgspec
import zmq

from engine import codec
from engine.messages import FromEngine, ToEngine

logger = logging.getLogger(__name__)

# a client that lets this many frames pile up unread is treated as gone
MAX_UNSENT_FRAMES = 100_000


class ClientGone(Exception):
    """A peer that can no longer be reached: nobody reads its requests' events any more."""


class RouterTransport:
    """Receives from and sends to many clients, named by their ZeroMQ identity. Never blocks."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNSENT_FRAMES)
        self._socket.bind(address)

    def wait(self, timeout_s: float) -> None:
        """Return when a message is there or the time is over."""
        self._socket.poll(int(timeout_s * 1000))

    def receive(self) -> list[tuple[bytes, ToEngine]]:
        """All (client, message) that have arrived; a foreign frame is logged and dropped."""
        messages: list[tuple[bytes, ToEngine]] = []
        while self._socket.poll(0):
            client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                for frame in frames:
                    messages += [(client, message) for message in codec.decode_to_engine(frame)]
            except msgspec.DecodeError as exc:
                logger.error("dropped a frame that is not a message: %s", exc)
        return messages

    def send(self, client: bytes, messages: Sequence[FromEngine]) -> None:
        """Raises ClientGone when the client has disconnected or has stopped reading."""
        try:
            self._socket.send_multipart([client, codec.encode(messages)], zmq.NOBLOCK)
        except zmq.ZMQError as exc:
            if exc.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise ClientGone from exc
            raise

    def close(self) -> None:
        self._socket.close()
        self._context.term()
