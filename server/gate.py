"""A worker's ASGI application: answers while the engine loads, then hands over to the real one, and
turns requests away when the worker is to end.

Owns no route of its own besides the three answers below; server/worker.py opens and closes it.
Those answers are logged and counted as all others are.
"""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import EngineUnavailable
from server.errors import error_response
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.tracing import NO_TRACES, Traces

RETRY_AFTER_S = 1


class Gate:
    """Live at once; not ready and 503 for everything else until `open` and from `close` on.

    Attributes:
        num_inside: requests that were let through and have not been answered to their end.
    """

    def __init__(self, metrics: Metrics, traces: Traces = NO_TRACES) -> None:
        self.num_inside = 0
        self._app: ASGIApp | None = None
        self._away = RequestMiddleware(self._turn_away, metrics, traces)
        self._refusal = "loading"
        self._reason = "The model is still loading; try again soon."
        self._is_closed = False

    def open(self, app: ASGIApp) -> None:
        """Let every request from now on through to `app`."""
        self._app = app

    def close(self) -> None:
        """Let no further request through; those inside go on. Metrics stay."""
        self._refusal = "draining"
        self._reason = "The server is shutting down; try again soon."
        self._is_closed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None and (not self._is_closed or scope.get("path") == "/metrics"):
            self.num_inside += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self.num_inside -= 1
        elif scope["type"] == "http":
            await self._away(scope, receive, send)
        else:
            raise RuntimeError(f"unexpected ASGI scope {scope['type']!r}")

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope["path"])(scope, receive, send)

    def _answer(self, path: str) -> Response:
        headers = {"cache-control": "no-store"}
        if self._is_closed:
            headers["connection"] = "close"
        if path == "/livez":
            return Response(b'{"status":"ok"}', 200, headers, "application/json")
        headers["retry-after"] = str(RETRY_AFTER_S)
        if path in ("/readyz", "/health"):
            body = b'{"status":"unavailable","reason":"' + self._reason.encode() + b'"}'
            return Response(body, 503, headers, "application/json")
        error = EngineUnavailable(self._reason, headers=headers)
        return error_response(error, refusal=self._refusal)
