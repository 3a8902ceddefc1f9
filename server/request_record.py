"""What is known of one HTTP request while it runs and at its end.

Begun by server/middleware.py and kept in the ASGI scope; filled by whoever knows something;
read for the response's headers, the log line, the metrics and the trace.
"""

from dataclasses import dataclass, field
from time import perf_counter, time_ns
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.types import Scope

if TYPE_CHECKING:
    from server.request_timer import RequestTimer

STATUS_CLIENT_GONE = 499  # nginx's; never sent, only logged and counted
KEY_IN_SCOPE = "qwen.key"  # the name of the API key, put there by whoever checks keys

_RECORD_IN_SCOPE = "qwen.record"


def _new_id() -> str:
    return f"req_{uuid4().hex}"


@dataclass(slots=True)
class RequestRecord:
    """One request; times are time.perf_counter() but for `started_ns`."""

    scope: Scope
    request_id: str = field(default_factory=_new_id)
    started_s: float = field(default_factory=perf_counter)
    started_ns: int = field(default_factory=time_ns)  # of the wall clock
    status: int | None = None  # None: the response has not begun
    ended_s: float | None = None
    error_code: str | None = None  # of the error that was answered
    refusal: str | None = None  # why a request that was right was turned away
    generation: "RequestTimer | None" = None

    @staticmethod
    def of(scope: Scope) -> "RequestRecord":
        """The record of the request that `scope` is of; begun by whoever asks first."""
        record: RequestRecord | None = scope.get(_RECORD_IN_SCOPE)
        if record is None:
            record = scope[_RECORD_IN_SCOPE] = RequestRecord(scope)
        return record

    def end(self) -> None:
        """The response is complete, or nobody is left to read it."""
        self.ended_s = perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Until its end, or until now."""
        end_s = perf_counter() if self.ended_s is None else self.ended_s
        return end_s - self.started_s

    @property
    def final_status(self) -> int:
        """What was answered; 499 where the client left before that."""
        return STATUS_CLIENT_GONE if self.status is None else self.status

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method

    @property
    def route(self) -> str:
        """The route's template, never the path that the client chose."""
        route: str = getattr(self.scope.get("route"), "path", "unknown")
        return route

    @property
    def key(self) -> str:
        """The name of the API key; empty where there is none."""
        return self.scope.get(KEY_IN_SCOPE) or ""

    def server_timing(self) -> str:
        """The value of a Server-Timing header: what is known by now, in milliseconds.

        Source: W3C Server Timing, section 3.
        """
        phases = {} if self.generation is None else self.generation.phases_s()
        phases["total"] = self.elapsed_s
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in phases.items())
