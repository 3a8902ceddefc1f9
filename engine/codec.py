"""Bytes on the queue: msgpack lists of the structs in engine/messages.py. Torch-free."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from engine.messages import FromEngine, ToEngine

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(list[ToEngine])
_from_engine = msgspec.msgpack.Decoder(list[FromEngine])


def encode(messages: Sequence[ToEngine | FromEngine]) -> bytes:
    """One frame for any number of messages, so that a step costs one send for each client."""
    return _encoder.encode(messages)


def decode_to_engine(frame: bytes) -> list[ToEngine]:
    """Raises msgspec.DecodeError for anything but a list of the server's messages."""
    return _decode(_to_engine, frame)


def decode_from_engine(frame: bytes) -> list[FromEngine]:
    """Raises msgspec.DecodeError for anything but a list of the engine's messages."""
    return _decode(_from_engine, frame)


def _decode(decoder: msgspec.msgpack.Decoder[list[Message]], frame: bytes) -> list[Message]:
    try:
        return decoder.decode(frame)
    except (
        UnicodeDecodeError,
        RecursionError,
        OverflowError,
    ) as exc:  # it lets through
        raise msgspec.DecodeError(str(exc)) from exc
