"""Whether requests are traced, and the seam to what traces them (server/otel_traces.py).

Traces need the extra `otel`: they are on where an endpoint is named, by our option or by
OpenTelemetry's own variables, and then the extra must be there.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from server.request_record import RequestRecord

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_EXPORTER_MODULE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class TracingError(Exception):
    """Traces cannot be sent as asked; the message is one line."""


class Traces(Protocol):
    """Takes what is known of a request at its end."""

    def export(self, record: "RequestRecord") -> dict[str, str]:
        """Make the request's spans; returns what its log line says of them."""
        ...

    def close(self) -> None:
        """Send what has not been sent. Blocks for some seconds where the receiver is away."""
        ...


class _NoTraces:
    def export(self, record: "RequestRecord") -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


NO_TRACES: Traces = _NoTraces()


def is_traced(endpoint: str | None, environment: Mapping[str, str]) -> bool:
    """Whether traces are asked for, by the option or by the environment.

    Raises TracingError where they are, but cannot be sent.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    names = [name for name in _ENDPOINT_VARIABLES if environment.get(name)]
    if endpoint is None and (not names or environment.get("OTEL_TRACES_EXPORTER") == "none"):
        return False
    asker = "--otlp-endpoint" if endpoint is not None else names[0]
    for name in _PROTOCOL_VARIABLES:
        if environment.get(name, _PROTOCOL) != _PROTOCOL:
            raise TracingError(f"{name} is {environment[name]}: only {_PROTOCOL} is supported")
    if not _is_installed():
        raise TracingError(
            f"{asker} asks for traces, which need the extra: pip install 'qwen-serve[otel]'"
        )
    return True


def traces_to(endpoint: str | None, environment: Mapping[str, str], model_name: str) -> Traces:
    """What sends traces to `endpoint` (a base URL; None: as the environment says), if asked to.

    Raises TracingError.
    """
    if not is_traced(endpoint, environment):
        return NO_TRACES
    from server.otel_traces import OtelTraces  # the extra

    return OtelTraces(endpoint, model_name)


def _is_installed() -> bool:
    try:
        return find_spec(_EXPORTER_MODULE) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
