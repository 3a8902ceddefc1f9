"""CORS: which web pages, by their origin, may read what this server answers in a browser.

Around everything, answers of a server that is still loading included. A preflight needs no key: a
browser sends none with it, and it opens nothing.
"""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from server.limits import RATE_LIMIT_HEADERS
from server.streaming import IGNORED_HEADER

_METHODS = ("GET", "POST", "DELETE")
_EXPOSED = (
    *("x-request-id", "openai-processing-ms", "openai-version", "retry-after", "retry-after-ms"),
    *RATE_LIMIT_HEADERS,
    IGNORED_HEADER,
)


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of `origins` ("*": of all) use `app`. No cookies: a page must have a key."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=_METHODS,
        allow_headers=("*",),
        expose_headers=_EXPOSED,
    )
