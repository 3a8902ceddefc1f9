"""One generation into one HTTP response: a stream of events or, from the same deltas, one reply.

Knows no endpoint: a ReplyWriter has the wire format. Sees to it that a client that leaves, at
whatever moment, stops costing the engine's time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError
from protocol.errors import ApiError, Internal
from protocol.sse import CONTENT_TYPE, DONE, frame
from protocol.usage import Usage
from server.choice import Delta
from server.deadline import Deadline
from server.errors import from_engine_error
from server.generation import Generation
from server.logging import get_logger
from server.patient_send import PatientSend

IGNORED_HEADER = "x-qwen-serve-ignored-parameters"

SEND_TIMEOUT_S = 60.0  # how long a client may leave what it gets unread
_MAX_IGNORED_LISTED = 50  # the names are the client's: a header must not grow with them
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_log = get_logger(__name__)
_encoder = msgspec.json.Encoder()

PieceT = TypeVar("PieceT", bound=msgspec.Struct)
ResultT = TypeVar("ResultT")
Deltas = list[tuple[int, Delta]]


class ReplyWriter(Protocol[PieceT]):
    """An endpoint's wire format. A piece is one entry of a chunk's `choices`."""

    def opening(self) -> Iterable[PieceT]:
        """Pieces that come before any delta."""
        ...

    def pieces(self, index: int, delta: Delta) -> Iterable[PieceT]:
        """What one delta of one choice becomes."""
        ...

    def chunk(self, piece: PieceT) -> msgspec.Struct:
        """The event of a stream that carries one piece."""
        ...

    def last_chunk(self, usage: Usage) -> msgspec.Struct | None:
        """The event with the usage, if it was asked for."""
        ...

    def reply(self, pieces: Sequence[PieceT], generation: Generation) -> msgspec.Struct:
        """All pieces folded into the whole reply."""
        ...


async def respond(
    request: Request,
    generation: Generation,
    writer: ReplyWriter[PieceT],
    *,
    deadline: Deadline,
    stream: bool,
    headers: Mapping[str, str],
) -> Response:
    """Run the generation to its end, or to its first events and then in the response.

    Until here an error has a status of its own. Takes over `generation`, closes it in every case.
    Raises ApiError, EngineError; ClientDisconnect if the client left.
    """
    is_handed_on = False
    try:
        deadline.watch(generation, stream=stream)
        if not stream:
            reply = await _until_disconnect(request.receive, _fold(generation, writer))
            return Response(
                _encoder.encode(reply), headers=dict(headers), media_type="application/json"
            )
        first = await _until_disconnect(request.receive, generation.next_deltas())
        deadline.has_begun()
        response = _GenerationResponse(
            _events(generation, writer, first), generation.close, {**headers, **_STREAM_HEADERS}
        )
        is_handed_on = True
        return response
    finally:
        if not is_handed_on:
            generation.close()


def ignored_header(ignored: Sequence[str]) -> dict[str, str]:
    """Name the unknown fields that were left out of the request, percent-encoded."""
    if not ignored:
        return {}
    return {
        IGNORED_HEADER: ", ".join(
            quote(name[:100], safe="[].") for name in ignored[:_MAX_IGNORED_LISTED]
        )
    }


async def _fold(generation: Generation, writer: ReplyWriter[PieceT]) -> msgspec.Struct:
    pieces = list(writer.opening())
    while (deltas := await generation.next_deltas()) is not None:
        for index, delta in deltas:
            pieces.extend(writer.pieces(index, delta))
    return writer.reply(pieces, generation)


async def _events(
    generation: Generation, writer: ReplyWriter[PieceT], deltas: Deltas | None
) -> AsyncIterator[bytes]:
    """The bytes of the stream; everything that is there at once goes into one write."""
    frames = [frame(_encoder.encode(writer.chunk(piece))) for piece in writer.opening()]
    try:
        while deltas is not None:
            for index, delta in deltas:
                for piece in writer.pieces(index, delta):
                    frames.append(frame(_encoder.encode(writer.chunk(piece))))
            if frames:
                yield b"".join(frames)
                frames.clear()
            deltas = await generation.next_deltas()
        last = writer.last_chunk(generation.usage())
        yield DONE if last is None else frame(_encoder.encode(last)) + DONE
    except ApiError as error:
        yield frame(error.encode())
    except EngineError as error:
        _log.error("engine_error", error=str(error), kind=type(error).__name__)
        yield frame(from_engine_error(error).encode())
    except Exception:
        _log.exception("unhandled_error")
        yield frame(Internal().encode())


class _GenerationResponse(StreamingResponse):
    """Closes the generation however the response ends, also if it never begins to be iterated."""

    def __init__(
        self, content: AsyncIterator[bytes], close: Callable[[], None], headers: Mapping[str, str]
    ) -> None:
        super().__init__(content, headers={**headers, "content-type": CONTENT_TYPE})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        patient = PatientSend(send, SEND_TIMEOUT_S)
        try:
            await super().__call__(scope, receive, patient)
        except asyncio.CancelledError:
            if not patient.has_given_up:
                raise
            patient.task.uncancel()
            _log.warning("client does not read", after_s=SEND_TIMEOUT_S)
        finally:
            # Starlette cancels the stream when the client leaves: nothing may be awaited here
            patient.close()
            self._close()


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return the result of `work`, or cancel it and raise ClientDisconnect if the client leaves."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        watcher.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watcher.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
