"""What surrounds every HTTP request: id, headers, log line, count, trace, last resort for errors.

Pure ASGI: Starlette's BaseHTTPMiddleware would put a task and a queue into every stream.
"""

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import Internal
from server.errors import error_response
from server.logging import get_logger
from server.metrics import Metrics
from server.request_log import log_fields
from server.request_record import RequestRecord
from server.tracing import NO_TRACES, Traces

OPENAI_VERSION = "2020-10-01"

_log = get_logger(__name__)


class RequestMiddleware:
    """Outermost of our own: everything inside logs with the request's id."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces = NO_TRACES) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord.of(scope)
        with structlog.contextvars.bound_contextvars(request_id=record.request_id):
            await _Exchange(record, send, self._metrics, self._traces).run(self._app, receive)


class _Exchange:
    """One request and its response."""

    def __init__(self, record: RequestRecord, send: Send, metrics: Metrics, traces: Traces) -> None:
        self._record = record
        self._raw_send = send
        self._metrics = metrics
        self._traces = traces

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        record = self._record
        try:
            await app(record.scope, receive, self._send)
        except Exception:
            _log.exception("unhandled_error")
            if record.status is not None:
                record.error_code = "internal"
                raise  # too late for a status; the server cuts the connection
            await error_response(Internal())(record.scope, receive, self._send)
        finally:
            self._end()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            record = self._record
            record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = record.request_id
            headers["openai-version"] = OPENAI_VERSION
            headers["openai-processing-ms"] = str(round(record.elapsed_s * 1000))
            headers["server-timing"] = record.server_timing()
        await self._raw_send(message)

    def _end(self) -> None:
        record = self._record
        record.end()
        fields = log_fields(record)
        try:
            self._metrics.http_response(record)
            fields |= self._traces.export(record)
        finally:  # whatever goes wrong: a request without a line would have vanished
            _log.info("http_request", **fields)
