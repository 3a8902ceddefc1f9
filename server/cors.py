"""CORS: which web pages, by their origin, may read what this server answers in a browser.

Around everything, answers of a server that is still loading included. A preflight needs no key: a
browser sends none with it, and it opens nothing. It is answered here, so it is logged here.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.limits import RATE_LIMIT_HEADERS
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.streaming import IGNORED_HEADER
from server.tracing import NO_TRACES, Traces

_METHODS = ("GET", "POST", "DELETE")
_EXPOSED = (
    *("x-request-id", "openai-processing-ms", "openai-version", "retry-after", "retry-after-ms"),
    *RATE_LIMIT_HEADERS,
    IGNORED_HEADER,
)


def with_cors(
    app: ASGIApp, origins: Sequence[str], metrics: Metrics, traces: Traces = NO_TRACES
) -> ASGIApp:
    """Let pages of `origins` ("*": of all) use `app`. No cookies: a page must have a key."""
    if not origins:
        return app
    cors = CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=_METHODS,
        allow_headers=("*",),
        expose_headers=_EXPOSED,
    )
    preflights = RequestMiddleware(cors, metrics, traces)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await (preflights if _is_preflight(scope) else cors)(scope, receive, send)

    return answer


def _is_preflight(scope: Scope) -> bool:
    """As CORSMiddleware tells them: it answers them itself."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers
