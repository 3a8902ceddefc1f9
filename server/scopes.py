"""Which scopes open which route: the one table that says so.

What is not in it is closed to every key (server/auth.py); a test compares it with the routes.
"""

from collections.abc import Mapping

from starlette.routing import compile_path

from server.keys import Scope

# what load balancers ask, and who knows no key may know
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})

# a key needs one of them
ROUTE_SCOPES: Mapping[str, frozenset[Scope]] = {
    "/v1/chat/completions": frozenset({"infer"}),
    "/v1/completions": frozenset({"infer"}),
    "/v1/models": frozenset({"infer", "tune"}),
    "/v1/models/{model:path}": frozenset({"infer", "tune"}),
    "/tokenize": frozenset({"infer"}),
    "/detokenize": frozenset({"infer"}),
    "/metrics": frozenset({"metrics"}),
    "/docs": frozenset({"infer", "tune", "admin"}),
    "/redoc": frozenset({"infer", "tune", "admin"}),
    "/openapi.json": frozenset({"infer", "tune", "admin"}),
}

_PATTERNS = [
    (compile_path(template)[0], scopes)
    for template, scopes in ROUTE_SCOPES.items()
    if "{" in template
]


def scopes_of(path: str) -> frozenset[Scope] | None:
    """The scopes that open `path`; None where no route has it."""
    if path in ROUTE_SCOPES:
        return ROUTE_SCOPES[path]
    return next((scopes for pattern, scopes in _PATTERNS if pattern.match(path)), None)
