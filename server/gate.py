"""A worker's ASGI application: answers while the engine loads, then hands over to the real one, and
turns requests away when the worker is to end.

Owns no route of its own besides the three answers below; server/worker.py opens and closes it.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import EngineUnavailable

RETRY_AFTER_S = 1


class Gate:
    """Live at once; not ready and 503 for everything else until `open` and from `close` on.

    Attributes:
        num_inside: requests that were let through and have not been answered to their end.
    """

    def __init__(self) -> None:
        self.num_inside = 0
        self._app: ASGIApp | None = None
        self._reason = "The model is still loading; try again soon."
        self._is_closed = False

    def open(self, app: ASGIApp) -> None:
        """Let every request from now on through to `app`."""
        self._app = app

    def close(self) -> None:
        """Let no further request through; those inside go on. Metrics stay."""
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
            await self._answer(scope["path"], send)
        else:
            raise RuntimeError(f"unexpected ASGI scope {scope['type']!r}")

    async def _answer(self, path: str, send: Send) -> None:
        error = EngineUnavailable(self._reason)
        status, body = error.status, error.encode()
        if path == "/livez":
            status, body = 200, b'{"status":"ok"}'
        elif path in ("/readyz", "/health"):
            body = b'{"status":"unavailable","reason":"' + self._reason.encode() + b'"}'
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        if self._is_closed:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
