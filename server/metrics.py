"""Prometheus metrics of a server process; docs/metrics.md has them all.

Where OpenTelemetry's GenAI conventions have a name it is that one, else qwen_serve_*
(docs/decisions/0016-metric-names.md). Counts what the HTTP side sees; the engine's newest
statistics are translated at the scrape (server/engine_metrics.py), as are vLLM's names
(server/vllm_metrics.py).
With several worker processes on one engine, prometheus_client's multiprocess mode adds the workers'
own metrics up, whichever worker is scraped; the engine's appear once. That mode is chosen by an
environment variable that prometheus_client reads when it is imported, so the parent calls
`share_between_workers` before it spawns (not forks) the workers.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from engine.messages import EngineInfo
from server.bounded_names import BoundedNames
from server.engine_metrics import EngineCollector, EngineView
from server.request_record import RequestRecord
from server.request_timer import RequestTimer
from server.vllm_metrics import vllm_families

_MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PROVIDER = "qwen-serve"
_GEN_AI_LABELS = (
    *("gen_ai_operation_name", "gen_ai_provider_name"),
    *("gen_ai_request_model", "gen_ai_response_model"),
)
_MAX_KEYS = 100  # label values; the rest share one

# Seconds, unless said. The conventions' own boundaries, and beyond them what a small model on a GPU
# (1 ms a token) and a long prompt on a laptop CPU need.
_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640),
)
_OUTPUT_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4),
    *(0.5, 0.75, 1, 2.5, 5, 10, 20),
)
_REQUEST_BUCKETS = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    *(163.84, 327.68, 655.36, 1310.72),
)
_HTTP_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480, 960, 1920),
)
_TOKEN_BUCKETS = tuple(4**power for power in range(14))  # tokens, of the conventions
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_CHOICE_BUCKETS = (1, 2, 5, 10, 20, 50, 100)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# there from the start, so that the first one is an increase
_REFUSALS = ("overloaded", "rate_limit_exceeded", "engine_unavailable", "draining", "loading")


def share_between_workers(directory: Path) -> None:
    """Prepare `directory` and this process's environment for workers that share their metrics.

    Call it once in the parent, before it spawns workers; they pass `str(directory)` to Metrics.
    Removes what an earlier run left there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("*.db"):
        stale.unlink()
    os.environ[_MULTIPROCESS_VARIABLE] = str(directory)


def forget_worker(directory: Path, pid: int) -> None:
    """Drop the gauges of a worker that has exited; its counts are kept. Called by the parent."""
    mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of one server process. Used from its event loop, `render` from any thread.

    Raises ValueError when `multiprocess_dir` is given but prometheus_client was imported without.
    """

    def __init__(
        self,
        model_name: str,
        engine: EngineView,
        multiprocess_dir: str | None = None,
        *,
        has_vllm_names: bool = False,
    ) -> None:
        if multiprocess_dir is not None:
            _check_multiprocess(multiprocess_dir)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # as in multiprocess mode
        self.model_name = model_name
        self._multiprocess_dir = multiprocess_dir
        self._has_vllm_names = has_vllm_names
        self._engine = EngineCollector(model_name, engine)
        self._keys = BoundedNames(_MAX_KEYS)
        self._registry = CollectorRegistry()
        self._create_gen_ai_metrics()
        self._create_request_metrics()
        self._create_server_metrics()

    def _create_gen_ai_metrics(self) -> None:
        self._request_seconds = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "From a generation request's arrival to its end.",
            _REQUEST_BUCKETS,
            (*_GEN_AI_LABELS, "error_type"),
        )
        self._first_token_seconds = self._histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request's arrival to its first output token.",
            _FIRST_TOKEN_BUCKETS,
            _GEN_AI_LABELS,
        )
        self._output_token_seconds = self._histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time of a finished request's tokens behind the first.",
            _OUTPUT_TOKEN_BUCKETS,
            _GEN_AI_LABELS,
        )
        self._token_usage = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request: its prompt, cached ones included, and all of its choices.",
            _TOKEN_BUCKETS,
            (*_GEN_AI_LABELS, "gen_ai_token_type"),
        )

    def _create_request_metrics(self) -> None:
        self._requests = self._counter(
            "requests",
            "Generation requests that ended, by how they ended.",
            ("model_name", "endpoint", "outcome"),
        )
        self._cached_prompt_tokens = self._counter(
            "cached_prompt_tokens", "Prompt tokens taken from the prefix cache.", ("model_name",)
        ).labels(self.model_name)
        self.requests_in_progress = Gauge(
            "qwen_serve_requests_in_progress",
            "Generation requests that have not ended.",
            ["model_name"],
            registry=self._registry,
            multiprocess_mode="livesum",
        ).labels(self.model_name)
        self.inter_token_seconds = self._of_model(
            "inter_token_latency_seconds", "Between two output tokens.", _OUTPUT_TOKEN_BUCKETS
        )
        self._queue_seconds = self._of_model(
            "queue_time_seconds",
            "From the engine's receipt of a request to its first step.",
            _FIRST_TOKEN_BUCKETS,
        )
        self._prefill_seconds = self._of_model(
            "prefill_time_seconds",
            "From a request's first step to its first token.",
            _FIRST_TOKEN_BUCKETS,
        )
        self._decode_seconds = self._of_model(
            "decode_time_seconds", "From the first token to the end.", _REQUEST_BUCKETS
        )
        self._max_tokens = self._of_model(
            "request_max_tokens", "Output tokens that a sequence was allowed.", _TOKEN_BUCKETS
        )
        self._choices = self._of_model(
            "request_choices", "Sequences of a request.", _CHOICE_BUCKETS
        )
        self._resumed = self._counter(
            "resumed_requests", "Sequences that another engine went on with.", ("model_name",)
        ).labels(self.model_name)

    def _create_server_metrics(self) -> None:
        self._http_requests = self._counter(
            "http_requests",
            "HTTP responses by route template and status.",
            ("method", "route", "status"),
        )
        self._http_seconds = self._histogram(
            "qwen_serve_http_request_duration_seconds",
            "From an HTTP request's arrival to the end of its response.",
            _HTTP_BUCKETS,
            ("method", "route"),
        )
        self._refusals = self._counter(
            "refusals", "Requests turned away with 429 or 503, by reason.", ("reason",)
        )
        for reason in _REFUSALS:
            self._refusals.labels(reason)
        self._key_requests = self._counter(
            "key_requests", "HTTP responses by API key and status.", ("key", "status")
        )
        self._key_tokens = self._counter(
            "key_tokens", "Tokens of ended requests by API key.", ("key", "type")
        )
        self._loop_lag = self._histogram(
            "qwen_serve_event_loop_lag_seconds",
            "How late a worker's event loop wakes.",
            _LAG_BUCKETS,
            (),
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"qwen_serve_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str]
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=buckets)

    def _of_model(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = self._histogram(f"qwen_serve_{name}", text, buckets, ("model_name",))
        return histogram.labels(self.model_name)

    def describe_engine(self, info: EngineInfo) -> None:
        """What the engine has loaded."""
        self._engine.info = info

    def request_started(
        self, record: RequestRecord, endpoint: str, operation: str, model: str
    ) -> RequestTimer:
        """Start timing a generation request.

        `endpoint` is a route's template, `operation` one of gen_ai.operation.name and `model` the
        name that was asked for, which must be one of those served.
        """
        return RequestTimer(self, record, endpoint, operation, model)

    def request_planned(self, num_sequences: int, max_tokens: int) -> None:
        """What a generation request asks for."""
        self._choices.observe(num_sequences)
        self._max_tokens.observe(max_tokens)

    def first_token(self, timer: RequestTimer) -> None:
        """A request's first token is there."""
        if timer.first_token_s is not None:
            self._first_token_seconds.labels(*self._gen_ai(timer)).observe(timer.first_token_s)
        if timer.timing is not None:
            self._queue_seconds.observe(timer.timing.queue_s)
            self._prefill_seconds.observe(timer.timing.prefill_s)

    def request_finished(self, timer: RequestTimer) -> None:
        """A generation request has ended."""
        gen_ai = self._gen_ai(timer)
        self._request_seconds.labels(*gen_ai, timer.error_type).observe(timer.duration_s)
        self._token_usage.labels(*gen_ai, "input").observe(timer.prompt_tokens)
        self._token_usage.labels(*gen_ai, "output").observe(timer.output_tokens)
        if timer.decode_s is not None:
            self._decode_seconds.observe(timer.decode_s)
        if timer.time_per_output_token_s is not None and not timer.error_type:
            self._output_token_seconds.labels(*gen_ai).observe(timer.time_per_output_token_s)
        self._requests.labels(self.model_name, timer.endpoint, timer.outcome).inc()
        self._cached_prompt_tokens.inc(timer.cached_tokens)
        if timer.record.key:
            key = self._keys.label(timer.record.key)
            self._key_tokens.labels(key, "input").inc(timer.prompt_tokens)
            self._key_tokens.labels(key, "output").inc(timer.output_tokens)

    def _gen_ai(self, timer: RequestTimer) -> tuple[str, ...]:
        return timer.operation, _PROVIDER, timer.model, self.model_name

    def requests_resumed(self, count: int) -> None:
        """Another engine goes on with so many sequences."""
        self._resumed.inc(count)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop woke so late."""
        self._loop_lag.observe(seconds)

    def http_response(self, record: RequestRecord) -> None:
        """Count a response."""
        method = record.method if record.method in _METHODS else "other"
        status = str(record.final_status)
        self._http_requests.labels(method, record.route, status).inc()
        self._http_seconds.labels(method, record.route).observe(record.elapsed_s)
        if record.refusal is not None:
            self._refusals.labels(record.refusal).inc()
        if record.key:
            self._key_requests.labels(self._keys.label(record.key), status).inc()

    def render(self, num_tasks: int = 0) -> tuple[bytes, str]:
        """Body and content type of /metrics; for any thread.

        `num_tasks`: of the event loop. A request is a task, and each of its sequences is one: a
        number that stays above what an idle server has is a leak.
        """
        families = [*self._own_families(), *self._engine.collect(), *_build_info()]
        families.append(_event_loop_tasks(num_tasks))
        if self._has_vllm_names:
            families += vllm_families(families, self.model_name)
        page = CollectorRegistry()
        page.register(_Families(families))
        return generate_latest(page), CONTENT_TYPE_LATEST

    def _own_families(self) -> Iterable[Metric]:
        if self._multiprocess_dir is None:
            return self._registry.collect()
        shared = CollectorRegistry()
        MultiProcessCollector(shared, self._multiprocess_dir)  # type: ignore[no-untyped-call]
        return shared.collect()


class _Families(Collector):
    """What has been collected already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _event_loop_tasks(num_tasks: int) -> Metric:
    text = "Tasks of the event loop of the server process that answers."
    return GaugeMetricFamily("qwen_serve_event_loop_tasks", text, value=num_tasks)


def _build_info() -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "qwen_serve_build_info", "Always 1.", labels=["version", "python_version"]
    )
    info.add_metric([version("qwen-serve"), python_version()], 1)
    yield info


def _check_multiprocess(directory: str) -> None:
    is_shared = values.ValueClass is not values.MutexValue
    if not is_shared or os.environ.get(_MULTIPROCESS_VARIABLE) != directory:
        raise ValueError(
            f"{_MULTIPROCESS_VARIABLE} must be {directory!r} in the environment"
            " before this process imports prometheus_client"
        )
