"""Reads a request's body: JSON by its content type, and no larger than a server can hold.

Knows nothing of what is in it (protocol/validation.py). How long it may take on its way is the
connection's to say (server/http_connection.py).
"""

from fastapi import Request

from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.validation import MAX_QUOTED
from server.state import AppState


async def read_json_body(request: Request) -> bytes:
    """Return the raw body.

    The content type is more than a formality: other types a web page may send to any server, this
    one on the user's own machine too, without asking that server first (CORS).
    Raises InvalidRequest for another content type or a compressed body, PayloadTooLarge as soon as
    it is too large, or is said to be.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise InvalidRequest(
            f"Unsupported content encoding: '{encoding[:MAX_QUOTED]}'. Send the body as it is: a "
            "compressed one could be of any size.",
            code="unsupported_content_encoding",
        )
    state: AppState = request.app.state.qwen
    max_bytes = state.config.max_body_bytes
    if _announced_bytes(request) > max_bytes:
        raise _too_large(max_bytes)  # a client that waits for "100 Continue" need not send it
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        shown = content_type[:MAX_QUOTED]
        raise InvalidRequest(
            f"Unsupported content type: '{shown}'. This API method only accepts 'application/json' "
            f"requests, but you specified the header 'Content-Type: {shown}'. Please try again "
            "with a supported content type.",
            code="unsupported_content_type",
        )
    chunks = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _announced_bytes(request: Request) -> int:
    """0 where there is no content-length, as with chunks; the HTTP parser lets only digits pass."""
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else 0


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request's body is larger than {max_bytes} bytes, the most that is read."
    )
