"""Every error a client can be sent, and its body exactly as OpenAI writes it.

Knows status, type, param and code; does not know where an error came from. Raised by protocol/ and
server/, turned into a response by server/errors.py. Wire format: OpenAI's ErrorResponse, all four
keys present, `code` a string or null.

ApiError
  InvalidRequest 400
    ContextLengthExceeded 400   Unauthorized 401   Forbidden 403   MethodNotAllowed 405
    NotFound 404 <- ModelNotFound 404   RequestTooSlow 408   PayloadTooLarge 413
  RateLimited 429 <- TokensLimited 429
  Overloaded 503   EngineUnavailable 503   DeadlineExceeded 504   Internal 500
"""

from collections.abc import Mapping
from typing import ClassVar

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The whole body of an error response, and of an error event inside a stream."""

    error: ErrorDetail


_MAX_QUOTED = 200  # characters of a model's name
# What a client wrote is quoted in what it is told: an answer must not grow with it
MAX_MESSAGE_CHARS = 1000
MAX_PARAM_CHARS = 200


class ApiError(Exception):
    """Base of all; the message is meant for the client's eyes."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _clipped(message, MAX_MESSAGE_CHARS)
        self.param = param and _clipped(param, MAX_PARAM_CHARS)
        self.code = code if code is not None else self.default_code
        self.headers = dict(headers or {})

    def encode(self) -> bytes:
        """Return the JSON body."""
        return msgspec.json.encode(
            ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))
        )


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


class InvalidRequest(ApiError):
    """The request itself is wrong; sending it again cannot help."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, alone or with the requested output, does not fit into the model's context."""

    default_code = "context_length_exceeded"


class Unauthorized(InvalidRequest):
    """No API key, or one that is not ours."""

    status = 401


class Forbidden(InvalidRequest):
    """A key of ours that may not do this."""

    status = 403
    default_code = "insufficient_permissions"


class NotFound(InvalidRequest):
    """An unknown URL or object."""

    status = 404


class ModelNotFound(NotFound):
    default_code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model[:_MAX_QUOTED]}` does not exist or you do not have access to it.",
            param="model",
        )


class MethodNotAllowed(InvalidRequest):
    status = 405
    default_code = "method_not_supported"


class RequestTooSlow(InvalidRequest):
    """It takes too long on its way."""

    status = 408
    default_code = "request_timeout"


class HeadersTooLarge(InvalidRequest):
    status = 431
    default_code = "headers_too_large"


class PayloadTooLarge(InvalidRequest):
    status = 413
    default_code = "payload_too_large"


class RateLimited(ApiError):
    """Too many requests of this client."""

    status = 429
    type = "requests"
    default_code = "rate_limit_exceeded"


class TokensLimited(RateLimited):
    """Too many tokens of this client."""

    type = "tokens"


class Overloaded(ApiError):
    """The server has more work than it accepts; try again later."""

    status = 503
    default_code = "overloaded"


class EngineUnavailable(ApiError):
    """The engine is starting, stopping or dead."""

    status = 503
    default_code = "engine_unavailable"


class DeadlineExceeded(ApiError):
    """The client does not wait any longer, by its own words."""

    status = 504
    type = "timeout"
    default_code = "deadline_exceeded"


class Internal(ApiError):
    """A fault of ours; the details are in the log, never in the answer."""

    def __init__(
        self,
        message: str = "The server had an error while processing your request. Sorry about that!",
    ) -> None:
        super().__init__(message)
