"""Every exception into the response a client gets. The only place that maps the engine's faults.

Never shows a traceback: what is not meant for a client goes to the log (server/middleware.py).
"""

from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from engine.errors import (
    CheckpointError,
    ConfigError,
    EngineDead,
    EngineError,
    InvariantViolated,
    RequestRejected,
)
from engine.messages import Fault, FaultCode, Grammar
from protocol.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineUnavailable,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
)
from protocol.validation import to_invalid_request
from server.logging import get_logger
from server.request_record import STATUS_CLIENT_GONE, RequestRecord

_REFUSALS = frozenset({429, 503})  # statuses of requests that may come again

_log = get_logger(__name__)


def _internal(fault: Fault) -> ApiError:
    _log.error("engine_fault", code=fault.code, message=fault.message)
    return Internal()


_FAULTS: dict[FaultCode, Callable[[Fault], ApiError]] = {
    "context_length_exceeded": lambda fault: ContextLengthExceeded(fault.message),
    "kv_cache_exceeded": lambda fault: InvalidRequest(fault.message, code="kv_cache_exceeded"),
    "invalid_request": lambda fault: InvalidRequest(fault.message),
    "invalid_grammar": lambda fault: InvalidRequest(fault.message, code="invalid_grammar"),
    "engine_dead": lambda fault: EngineUnavailable(fault.message),
    "numerical_error": _internal,
    "internal": _internal,
}
_ENGINE_ERRORS: dict[type[EngineError], Callable[[EngineError], ApiError]] = {
    RequestRejected: lambda error: from_fault(error.fault),  # type: ignore[attr-defined]
    EngineDead: lambda error: EngineUnavailable(str(error)),
    ConfigError: lambda error: Internal(),
    CheckpointError: lambda error: Internal(),
    InvariantViolated: lambda error: Internal(),
    EngineError: lambda error: Internal(),
}


def from_fault(fault: Fault, grammar: Grammar | None = None) -> ApiError:
    """Return what a client is told about the end of a sequence with reason "error".

    `grammar`: of the sequence; a fault of it names the field that it came from.
    """
    if fault.code == "invalid_grammar" and grammar is not None:
        return _invalid_grammar(fault, grammar)
    return _FAULTS[fault.code](fault)


def _invalid_grammar(fault: Fault, grammar: Grammar) -> InvalidRequest:
    param = grammar.origin.partition(" ")[0] or None
    if grammar.kind in ("json_schema", "json_object"):
        message = f"Invalid schema for {grammar.origin}: {fault.message}"
        return InvalidRequest(message, param=param, code="invalid_json_schema")
    if grammar.origin in ("tools", "functions"):
        return _invalid_tools(fault, grammar.origin)
    message = f"Invalid '{grammar.origin}': {fault.message}"
    return InvalidRequest(message, param=param, code="invalid_grammar")


def _invalid_tools(fault: Fault, origin: str) -> InvalidRequest:
    """A fault of one schema begins with what that is of; the others are of all tools together."""
    message = f"Invalid schema for {fault.message}"
    if fault.message.startswith("response_format:"):
        return InvalidRequest(message, param="response_format", code="invalid_json_schema")
    if not fault.message.startswith("function '"):
        message = f"Invalid '{origin}': {fault.message}"
    return InvalidRequest(message, param=origin, code="invalid_function_parameters")


def from_engine_error(error: EngineError) -> ApiError:
    """Return what a client is told about an exception of the engine package."""
    return next(
        _ENGINE_ERRORS[kind](error) for kind in type(error).__mro__ if kind in _ENGINE_ERRORS
    )


def error_label(error: Exception) -> str:
    """A short word for metrics, logs and traces: the code of what a client is told."""
    if isinstance(error, EngineDead):
        error = EngineUnavailable(str(error))
    if not isinstance(error, ApiError):
        return "internal"
    return error.code or ("internal" if error.status >= 500 else error.type)


def error_response(error: ApiError, *, refusal: str | None = None) -> Response:
    """The response; where it turns a request away, `refusal` may say why better than its code."""
    return _ErrorResponse(error, refusal)


class _ErrorResponse(Response):
    """Notes in the request's record what went wrong."""

    def __init__(self, error: ApiError, refusal: str | None) -> None:
        super().__init__(
            error.encode(),
            status_code=error.status,
            headers=error.headers,
            media_type="application/json",
        )
        self._label = error_label(error)
        self._refusal = refusal or (self._label if error.status in _REFUSALS else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord.of(scope)
        record.error_code, record.refusal = self._label, self._refusal
        await super().__call__(scope, receive, send)


def add_exception_handlers(app: FastAPI) -> None:
    """Install the handlers; what none of them takes is a 500 of server/middleware.py."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(EngineError, _on_engine_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(ClientDisconnect, _on_client_disconnect)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    _log.error("engine_error", error=str(error), kind=type(error).__name__)
    return error_response(from_engine_error(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: unknown URL, wrong method, unreadable form."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return error_response(NotFound(f"Invalid URL ({method} {path})", code="unknown_url"))
    if error.status_code == 405:
        return error_response(
            MethodNotAllowed(f"Not allowed to {method} on {path}.", headers=error.headers)
        )
    if error.status_code < 500:
        return error_response(InvalidRequest(str(error.detail), headers=error.headers))
    return error_response(Internal())


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's own, of path and query parameters; bodies go through protocol.validation."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    details = ErrorDetails(
        type=first["type"], loc=first["loc"][1:], msg=first["msg"], input=first.get("input")
    )
    if "ctx" in first:
        details["ctx"] = first["ctx"]
    return error_response(to_invalid_request(details))


async def _on_client_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=STATUS_CLIENT_GONE)
