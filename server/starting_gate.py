"""A worker's ASGI application: answers while the engine loads, then hands over to the real one.

Owns no route of its own besides the three answers below; server/worker.py opens it.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import EngineUnavailable

RETRY_AFTER_S = 1


class StartingGate:
    """Live at once, not ready and 503 for everything else until `open` is called."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def open(self, app: ASGIApp) -> None:
        """Let every request from now on through to `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope["path"], send)
        else:
            raise RuntimeError(f"unexpected ASGI scope {scope['type']!r}")

    async def _answer(self, path: str, send: Send) -> None:
        if path == "/livez":
            status, body = 200, b'{"status":"ok"}'
        elif path in ("/readyz", "/health"):
            status = 503
            body = b'{"status":"unavailable","reason":"The engine is loading the model."}'
        else:
            status = EngineUnavailable.status
            body = EngineUnavailable("The model is still loading; try again soon.").encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
