"""Spans of requests, by OpenTelemetry's GenAI conventions, sent to an OTLP receiver over HTTP.

Made when a request has ended, out of its record: nothing is traced while tokens flow. The request's
own span follows the W3C traceparent that came with it; its phases in the engine are children. No
prompt and no answer gets into a span. Needs the extra `otel`; only server/tracing.py imports this.
"""

from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers

from server.request_record import RequestRecord
from server.request_timer import FINISHED, RequestTimer

_PATH = "/v1/traces"  # below a base URL; OTLP's specification
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_PROVIDER = "qwen-serve"

Attributes = dict[str, AttributeValue]


class OtelTraces:
    """See server.tracing.Traces."""

    def __init__(self, endpoint: str | None, model_name: str) -> None:
        """`endpoint`: the receiver's base URL; None = what OpenTelemetry's variables say."""
        url = None if endpoint is None else endpoint.rstrip("/") + _PATH
        ours = Resource({"service.name": "qwen-serve", "service.version": version("qwen-serve")})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("qwen-serve", version("qwen-serve"))
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def export(self, record: RequestRecord) -> dict[str, str]:
        """Make the request's spans; returns their ids as fields of its log line."""
        if record.scope["path"] in _QUIET_PATHS:
            return {}
        timer = record.generation
        span = self._tracer.start_span(
            _name(record),
            self._propagator.extract(dict(Headers(scope=record.scope))),
            SpanKind.SERVER,
            _http_attributes(record) | ({} if timer is None else self._gen_ai_attributes(timer)),
            start_time=record.started_ns,
        )
        error_type = _error_type(record)
        if error_type:
            span.set_attribute("error.type", error_type)
            span.set_status(Status(StatusCode.ERROR))
        if timer is not None:
            self._export_phases(record, timer, span)
        span.end(_at(record, record.elapsed_s))
        context = span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()

    def _export_phases(self, record: RequestRecord, timer: RequestTimer, parent: Span) -> None:
        """The engine's durations, laid end to end around the moment of the first token."""
        if timer.first_token_s is None:
            return
        phases = timer.phases_s()
        begin_s = timer.first_token_s - phases.get("queue", 0.0) - phases.get("prefill", 0.0)
        context = set_span_in_context(parent)
        for name, seconds in phases.items():
            span = self._tracer.start_span(name, context, start_time=_at(record, begin_s))
            begin_s += seconds
            span.end(_at(record, begin_s))

    def _gen_ai_attributes(self, timer: RequestTimer) -> Attributes:
        attributes: Attributes = {
            "gen_ai.operation.name": timer.operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": timer.model,
            "gen_ai.response.model": self._model_name,
            "gen_ai.usage.input_tokens": timer.prompt_tokens,
            "gen_ai.usage.output_tokens": timer.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": timer.cached_tokens,
            "gen_ai.request.choice.count": timer.num_sequences,
        }
        if timer.first_token_s is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = timer.first_token_s
        if timer.outcome in FINISHED:
            attributes["gen_ai.response.finish_reasons"] = [timer.outcome]
        if (sampling := timer.sampling) is not None:
            attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
            attributes["gen_ai.request.temperature"] = sampling.temperature
            attributes["gen_ai.request.top_p"] = sampling.top_p
        return attributes


def _name(record: RequestRecord) -> str:
    timer = record.generation
    if timer is not None:
        return f"{timer.operation} {timer.model}"
    return f"{record.method} {record.route}"


def _error_type(record: RequestRecord) -> str:
    if record.generation is not None and record.generation.error_type:
        return record.generation.error_type
    if record.error_code is None and record.final_status >= 400:
        return str(record.final_status)
    return record.error_code or ""


def _http_attributes(record: RequestRecord) -> Attributes:
    attributes: Attributes = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.final_status,
        "qwen_serve.request_id": record.request_id,
    }
    if record.key:
        attributes["qwen_serve.key"] = record.key
    if record.scope.get("server"):
        host, port = record.scope["server"]
        attributes |= {"server.address": host} | ({} if port is None else {"server.port": port})
    return attributes


def _at(record: RequestRecord, seconds: float) -> int:
    """The wall clock so many seconds after the request's arrival, in nanoseconds."""
    return record.started_ns + round(seconds * 1e9)
