"""Reads a request's body: JSON by its content type, and no larger than a server can hold.

Knows nothing of what is in it (protocol/validation.py).
"""

import asyncio

from fastapi import Request

from protocol.errors import BodyTimeout, InvalidRequest, PayloadTooLarge
from protocol.validation import MAX_QUOTED
from server.state import AppState

BODY_TIMEOUT_S = 300.0  # 16 MiB at 56 KiB/s


async def read_json_body(request: Request) -> bytes:
    """Return the raw body.

    The content type is more than a formality: other types a web page may send to any server, this
    one on the user's own machine too, without asking that server first (CORS).
    Raises InvalidRequest for another content type, PayloadTooLarge as soon as it is too large,
    BodyTimeout.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        shown = content_type[:MAX_QUOTED]
        raise InvalidRequest(
            f"Unsupported content type: '{shown}'. This API method only accepts 'application/json' "
            f"requests, but you specified the header 'Content-Type: {shown}'. Please try again "
            "with a supported content type.",
            code="unsupported_content_type",
        )
    state: AppState = request.app.state.qwen
    max_bytes = state.config.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)  # a client that waits for "100 Continue" need not send it
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(request, max_bytes)
    except TimeoutError as exc:
        raise BodyTimeout(
            f"The request's body was not there within {BODY_TIMEOUT_S:g} s.",
            headers={"connection": "close"},  # what still comes of it is no next request
        ) from exc


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request's body is larger than {max_bytes} bytes, the most that is read."
    )
