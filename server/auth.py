"""API keys: pure ASGI, in front of every route, so that no route can forget it.

Only the health checks are open. Keys are compared in constant time, all of them for every request.
"""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import Unauthorized
from server.errors import error_response

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})

_MISSING = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)


class AuthMiddleware:
    """Answers 401 unless the request carries one of `api_keys`; with no keys, all may pass."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        # digests have one length: comparing them tells nothing about a key's
        self._digests = [_digest(key) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS:
            error = self._refusal(Headers(scope=scope).get("authorization", ""))
            if error is not None:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, authorization: str) -> Unauthorized | None:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        headers = {"www-authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not key:
            return Unauthorized(_MISSING, headers=headers)
        digest = _digest(key)
        # a sum, not any(): that would stop at the key that fits
        if sum(hmac.compare_digest(digest, known) for known in self._digests):
            return None
        return Unauthorized(
            f"Incorrect API key provided: {_redact(key)}.", code="invalid_api_key", headers=headers
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _redact(key: str) -> str:
    """Show enough to recognise one's own key, as OpenAI does."""
    return f"{key[:3]}{'*' * 8}{key[-4:]}" if len(key) >= 16 else "*" * 8
