"""Traces: when they are on, when they are refused, and what a receiver of OTLP gets."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from engine.messages import EngineRequest, Event, Fault, Finished, Timing, TokenEvent
from server import tracing
from server.tracing import NO_TRACES, TracingError, is_traced, traces_to
from tests.server.otlp_receiver import attributes_of, otlp_receiver
from tests.server.scripted_app import App, ids_of, saying

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "a-prompt-nobody-may-see"
BODY = {"model": "alias", "messages": [{"role": "user", "content": SECRET}], "temperature": 0.5}


def timed(request: EngineRequest) -> Iterator[Event | float]:
    yield TokenEvent(request.id, ids_of("an-answer"), timing=Timing(0.25, 0.5))
    yield Finished(request.id, "stop", num_output_tokens=10, num_cached_tokens=3)


async def test_a_request_is_a_span_with_its_phases() -> None:
    app = App(timed)
    with otlp_receiver() as receiver:
        traces = traces_to(receiver.url, {}, "m")
        app.state = replace(app.state, traces=traces)
        with structlog.testing.capture_logs() as logs:
            parent = f"00-{TRACE_ID}-{PARENT_ID}-01"
            response = await app.post("/v1/chat/completions", BODY, traceparent=parent)
        assert response.status_code == 200
        traces.close()
        span = receiver.span("chat alias")
        phases = [receiver.span(name) for name in ("queue", "prefill", "decode")]
    assert receiver.paths == ["/v1/traces"]
    assert receiver.resources[0]["service.name"] == "qwen-serve"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.kind == 2  # SPAN_KIND_SERVER
    attributes = attributes_of(span)
    prompt_tokens = attributes["gen_ai.usage.input_tokens"]
    assert prompt_tokens > len(SECRET)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "qwen-serve",
        "gen_ai.request.model": "alias",
        "gen_ai.response.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "qwen_serve.request_id": response.headers["x-request-id"],
    }
    assert attributes.items() >= expected.items()
    assert SECRET not in repr(span) and "an-answer" not in repr(span)
    (line,) = logs
    assert (line["trace_id"], line["span_id"]) == (TRACE_ID, span.span_id.hex())
    for phase in phases:
        assert (phase.trace_id, phase.parent_span_id) == (span.trace_id, span.span_id)
    queue, prefill, decode = phases
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert prefill.end_time_unix_nano - prefill.start_time_unix_nano == pytest.approx(5e8, abs=10)
    assert decode.end_time_unix_nano <= span.end_time_unix_nano


async def test_errors_have_their_type_and_health_checks_no_span() -> None:
    app = App(saying(reason="error", fault=Fault("internal", "x")))
    with otlp_receiver() as receiver:
        app.state = replace(app.state, traces=traces_to(receiver.url + "/", {}, "m"))
        await app.post("/v1/chat/completions", BODY)
        await app.post("/v1/completions", {"model": "none", "prompt": SECRET})
        await app.post("/livez", {})
        app.state.traces.close()
    failed, refused = receiver.spans
    assert (failed.name, refused.name) == ("chat alias", "POST /v1/completions")
    assert [span.status.code for span in receiver.spans] == [2, 2]  # STATUS_CODE_ERROR
    assert attributes_of(failed)["error.type"] == "internal"
    assert "gen_ai.response.finish_reasons" not in attributes_of(failed)
    assert attributes_of(refused)["error.type"] == "model_not_found"
    assert len(failed.parent_span_id) == 0


async def test_the_standard_variables_name_receiver_and_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        app = App(timed)
        app.state = replace(app.state, traces=traces_to(None, os.environ, "m"))
        await app.post("/v1/chat/completions", BODY)
        sampled = f"00-{TRACE_ID}-{PARENT_ID}-01"
        await app.post("/v1/chat/completions", BODY, traceparent=sampled)
        app.state.traces.close()
    assert receiver.span("chat alias").trace_id.hex() == TRACE_ID  # the one that was asked for
    assert receiver.resources[0]["service.name"] == "mine"


async def test_a_receiver_that_is_away_costs_no_request(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    app = App(timed)
    app.state = replace(app.state, traces=traces_to("http://127.0.0.1:9", {}, "m"))
    assert (await app.post("/v1/chat/completions", BODY)).status_code == 200
    app.state.traces.close()


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        (None, {}, False),
        ("http://127.0.0.1:4318", {}, True),
        (None, ENDPOINT, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318"}, True),
        (None, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        (None, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_when_they_are_on(
    endpoint: str | None, environment: dict[str, str], expected: bool
) -> None:
    assert is_traced(endpoint, environment) is expected


def test_off_is_nothing() -> None:
    assert traces_to(None, {}, "m") is NO_TRACES


@pytest.mark.parametrize(
    ("endpoint", "environment", "asker"),
    [("http://127.0.0.1:4318", {}, "--otlp-endpoint"), (None, ENDPOINT, *ENDPOINT)],
)
def test_without_the_extra_they_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
    environment: dict[str, str],
    asker: str,
) -> None:
    monkeypatch.setattr(tracing, "_EXPORTER_MODULE", "opentelemetry.nowhere.exporter")
    with pytest.raises(TracingError, match=rf"^{asker} asks for .*'qwen-serve\[otel\]'$"):
        is_traced(endpoint, environment)


def test_another_protocol_is_refused() -> None:
    with pytest.raises(TracingError, match="OTEL_EXPORTER_OTLP_PROTOCOL is grpc"):
        is_traced(None, {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
