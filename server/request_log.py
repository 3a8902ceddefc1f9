"""What the log line of a request says; docs/metrics.md describes the fields.

Nothing that a client has written gets in but the path and an id of its own: no prompt, no answer.
"""

from typing import Any

from starlette.datastructures import Headers

from server.request_record import RequestRecord
from server.request_timer import RequestTimer

_MAX_CLIENT_ID_CHARS = 512  # OpenAI's limit of X-Client-Request-Id


def log_fields(record: RequestRecord) -> dict[str, Any]:
    """The fields; those of a generation only where there was one."""
    client_id = Headers(scope=record.scope).get("x-client-request-id")
    fields: dict[str, Any] = {
        "method": record.method,
        "path": record.scope["path"],
        "status": record.final_status,
        "duration_ms": _ms(record.elapsed_s),
        "client_request_id": client_id and client_id[:_MAX_CLIENT_ID_CHARS],
    }
    if record.key:
        fields["key"] = record.key
    if record.error_code is not None:
        fields["error_code"] = record.error_code
    if record.refusal is not None:
        fields["refusal"] = record.refusal
    return fields if record.generation is None else fields | _of_generation(record.generation)


def _of_generation(timer: RequestTimer) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": timer.model,
        "outcome": timer.outcome,
        "prompt_tokens": timer.prompt_tokens,
        "cached_tokens": timer.cached_tokens,
        "output_tokens": timer.output_tokens,
    }
    if timer.first_token_s is not None:
        fields["first_token_ms"] = _ms(timer.first_token_s)
    return fields | {f"{name}_ms": _ms(seconds) for name, seconds in timer.phases_s().items()}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
