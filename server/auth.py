"""Who asks, and whether they may: pure ASGI, in front of every route, so that none can forget it.

Denies by default. Open are only the health checks; what server/scopes.py does not list is 404 for
every key, whatever routes there are. Leaves the key's name in the scope as "qwen.key" and its
limits as "qwen.limits"; where no keys are configured both are missing.
"""

import binascii
from base64 import b64decode

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import ApiError, Forbidden, NotFound, Unauthorized
from server.errors import error_response
from server.keys import Key, KeyRing
from server.scopes import OPEN_PATHS, scopes_of

KEY = "qwen.key"
LIMITS = "qwen.limits"

_CHALLENGE = {"www-authenticate": 'Bearer, Basic realm="qwen-serve", charset="UTF-8"'}
_MAX_HEADER_BYTES = 4096  # a key has some 50

_MISSING = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)


class AuthMiddleware:
    """Answers 401 without a key of `keys` and 403 where its scopes do not open the route."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        """`keys`: None = all may pass; an empty ring lets nobody."""
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys is not None and scope["path"] not in OPEN_PATHS:
            try:
                key = _authenticate(self._keys, scope)
                _authorize(key, scope)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
            scope[LIMITS] = key.limits
        await self._app(scope, receive, send)


def _authenticate(keys: KeyRing, scope: Scope) -> Key:
    """Raises Unauthorized. Works on bytes, as a header has no encoding; keys are UTF-8."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) > 1:  # a proxy in front may have looked at the other one
        raise Unauthorized("There is more than one Authorization header.", headers=_CHALLENGE)
    value = values[0] if values else b""
    if len(value) > _MAX_HEADER_BYTES:
        raise Unauthorized("The Authorization header is too long.", headers=_CHALLENGE)
    scheme, _, credentials = value.partition(b" ")
    credentials = credentials.strip()
    if not credentials:
        raise Unauthorized(_MISSING, headers=_CHALLENGE)
    match scheme.lower():
        case b"bearer":
            key, shown = keys.find(credentials), _redact(credentials)
        case b"basic":
            user, password = _basic(credentials)
            key, shown = keys.find_by_name(user, password), _redact(password)
        case _:
            raise Unauthorized(_MISSING, headers=_CHALLENGE)
    if key is None:
        raise Unauthorized(
            f"Incorrect API key provided: {shown}.", code="invalid_api_key", headers=_CHALLENGE
        )
    scope[KEY] = key.name  # a request that is refused for its scopes has a name, too
    return key


def _basic(credentials: bytes) -> tuple[bytes, bytes]:
    """User and password (RFC 7617)."""
    try:
        user, separator, password = b64decode(credentials, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        separator = b""
    if not separator:
        raise Unauthorized(
            "The Authorization header is not one of Basic auth: it must be the base64 of "
            "user:password.",
            headers=_CHALLENGE,
        )
    return user, password


def _authorize(key: Key, scope: Scope) -> None:
    """Raises NotFound, Forbidden."""
    path = scope["path"]
    needed = scopes_of(path)
    if needed is None:
        raise NotFound(f"Invalid URL ({scope['method']} {path})", code="unknown_url")
    if not key.scopes & needed:
        raise Forbidden(
            "You have insufficient permissions for this operation. Missing scopes: "
            f"{' or '.join(sorted(needed))}."
        )


def _redact(secret: bytes) -> str:
    """Show enough to recognise one's own key, as OpenAI does."""
    text = secret.decode(errors="replace")
    return f"{text[:3]}{'*' * 8}{text[-4:]}" if len(text) >= 16 else "*" * 8
