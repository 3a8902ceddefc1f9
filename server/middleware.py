"""What surrounds every HTTP request: id, headers, log line, count, last resort for errors.

Pure ASGI: Starlette's BaseHTTPMiddleware would put a task and a queue into every stream.
"""

from time import perf_counter
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import Internal
from server.errors import STATUS_CLIENT_GONE, error_response
from server.logging import get_logger
from server.metrics import Metrics

OPENAI_VERSION = "2020-10-01"

_MAX_CLIENT_ID_CHARS = 512  # OpenAI's limit of X-Client-Request-Id

_log = get_logger(__name__)


class RequestMiddleware:
    """Outermost of our own: everything inside logs with the request's id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid4().hex}"
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await _Exchange(scope, send, request_id, self._metrics).run(self._app, receive)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, send: Send, request_id: str, metrics: Metrics) -> None:
        self._scope = scope
        self._raw_send = send
        self._request_id = request_id
        self._metrics = metrics
        self._started_at = perf_counter()
        self._status: int | None = None  # None: the response has not begun

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        try:
            await app(self._scope, receive, self._send)
        except Exception:
            _log.exception("unhandled_error")
            if self._status is not None:
                raise  # too late for a status; the server cuts the connection
            await error_response(Internal())(self._scope, receive, self._send)
        finally:
            self._record()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["openai-version"] = OPENAI_VERSION
            headers["openai-processing-ms"] = str(round(self._elapsed_s * 1000))
        await self._raw_send(message)

    @property
    def _elapsed_s(self) -> float:
        return perf_counter() - self._started_at

    def _record(self) -> None:
        scope, elapsed_s = self._scope, self._elapsed_s
        status = STATUS_CLIENT_GONE if self._status is None else self._status
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.http_response(scope["method"], route, status, elapsed_s)
        client_id = Headers(scope=scope).get("x-client-request-id")
        _log.info(
            "http_request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            duration_ms=round(elapsed_s * 1000, 1),
            client_request_id=client_id and client_id[:_MAX_CLIENT_ID_CHARS],
        )
