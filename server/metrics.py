"""Prometheus metrics of a server process, all named qwen_serve_*.

Counts what the HTTP side sees and translates the engine's newest EngineStats when it is scraped.
With several worker processes on one engine, prometheus_client's multiprocess mode adds the workers'
own metrics up, whichever worker is scraped; the engine's appear once. That mode is chosen by an
environment variable that prometheus_client reads when it is imported, so the parent calls
`share_between_workers` before it spawns (not forks) the workers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from engine.messages import EngineStats
from server.event_loop_collector import EventLoopCollector

_MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# Seconds. From a small model on a GPU (1 ms a token) to a long prompt on a laptop CPU.
_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640),
)
_INTER_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4),
    *(0.5, 0.75, 1, 2.5, 5, 10, 20),
)
_DURATION_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480, 960, 1920),
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
    """All metrics of one server process. Used from its event loop.

    Raises ValueError when `multiprocess_dir` is given but prometheus_client was imported without.
    """

    def __init__(
        self,
        model_name: str,
        engine_stats: Callable[[], EngineStats],
        multiprocess_dir: str | None = None,
    ) -> None:
        if multiprocess_dir is not None:
            _check_multiprocess(multiprocess_dir)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # as in multiprocess mode
        self._multiprocess_dir = multiprocess_dir
        self._engine = _EngineCollector(model_name, engine_stats)
        self._registry = CollectorRegistry()
        if multiprocess_dir is None:
            self._registry.register(self._engine)
            self._registry.register(EventLoopCollector())
        self._create_request_metrics(model_name)
        self._create_http_metrics()

    def _create_request_metrics(self, model_name: str) -> None:
        self.model_name = model_name
        self.requests = Counter(
            "qwen_serve_requests",
            "Generation requests that ended, by how they ended.",
            ["model_name", "endpoint", "outcome"],
            registry=self._registry,
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of ended requests, cached ones included."
        )
        self.cached_prompt_tokens = self._counter(
            "cached_prompt_tokens", "Prompt tokens taken from the prefix cache."
        )
        self.generation_tokens = self._counter(
            "generation_tokens", "Output tokens of ended requests."
        )
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds",
            "From the request's arrival to its first output token.",
            _FIRST_TOKEN_BUCKETS,
        )
        self.inter_token_seconds = self._histogram(
            "inter_token_latency_seconds",
            "Between two output tokens of a request.",
            _INTER_TOKEN_BUCKETS,
        )
        self.request_seconds = self._histogram(
            "request_duration_seconds",
            "From a generation request's arrival to its end.",
            _DURATION_BUCKETS,
        )
        self.requests_in_progress = Gauge(
            "qwen_serve_requests_in_progress",
            "Generation requests that have not ended.",
            ["model_name"],
            registry=self._registry,
            multiprocess_mode="livesum",
        ).labels(model_name)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"qwen_serve_{name}", text, ["model_name"], registry=self._registry)
        return counter.labels(self.model_name)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"qwen_serve_{name}", text, ["model_name"], registry=self._registry, buckets=buckets
        )
        return histogram.labels(self.model_name)

    def _create_http_metrics(self) -> None:
        self._http_requests = Counter(
            "qwen_serve_http_requests",
            "HTTP responses by route template and status.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "qwen_serve_http_request_duration_seconds",
            "From an HTTP request's arrival to the end of its response.",
            ["method", "route"],
            registry=self._registry,
            buckets=_DURATION_BUCKETS,
        )

    def request_started(self, endpoint: str) -> "RequestTimer":
        """Start timing a generation request; `endpoint` is a route template such as its path."""
        return RequestTimer(self, endpoint)

    def http_response(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a response. `route` is the route's template, never the path the client chose."""
        known = method if method in _METHODS else "other"
        self._http_requests.labels(known, route, str(status)).inc()
        self._http_seconds.labels(known, route).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Body and content type of /metrics."""
        registry = self._registry
        if self._multiprocess_dir is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, self._multiprocess_dir)  # type: ignore[no-untyped-call]
            registry.register(self._engine)
            registry.register(EventLoopCollector())
        return generate_latest(registry), CONTENT_TYPE_LATEST


class RequestTimer:
    """Times a generation request: `first_token`, `token` for each later event, `finished`."""

    __slots__ = ("_endpoint", "_inter_token", "_is_finished", "_last", "_metrics", "_started")

    def __init__(self, metrics: Metrics, endpoint: str) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._inter_token = metrics.inter_token_seconds
        self._is_finished = False
        self._started = self._last = perf_counter()
        metrics.requests_in_progress.inc()

    def first_token(self) -> None:
        """The first output token is there."""
        self._last = perf_counter()
        self._metrics.first_token_seconds.observe(self._last - self._started)

    def token(self, count: int) -> None:
        """`count` more output tokens came together; they share the time since the last ones."""
        now = perf_counter()
        elapsed = now - self._last
        self._last = now
        if count == 1:
            self._inter_token.observe(elapsed)
            return
        for _ in range(count):
            self._inter_token.observe(elapsed / count)

    def finished(
        self, *, outcome: str, prompt_tokens: int, cached_tokens: int, output_tokens: int
    ) -> None:
        """The request ended. Only the first call counts."""
        if self._is_finished:
            return
        self._is_finished = True
        metrics = self._metrics
        metrics.requests_in_progress.dec()
        metrics.requests.labels(metrics.model_name, self._endpoint, outcome).inc()
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.cached_prompt_tokens.inc(cached_tokens)
        metrics.generation_tokens.inc(output_tokens)
        metrics.request_seconds.observe(perf_counter() - self._started)


class _EngineCollector(Collector):
    """The newest EngineStats as metrics, read at each scrape."""

    def __init__(self, model_name: str, engine_stats: Callable[[], EngineStats]) -> None:
        self._model_name = model_name
        self._engine_stats = engine_stats

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask the engine, which may not have started."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._engine_stats()
        used_blocks = stats.num_blocks - stats.num_free_blocks
        usage = used_blocks / stats.num_blocks if stats.num_blocks else 0.0
        gauges = (
            ("running_sequences", "Sequences in the current batch.", stats.num_running),
            ("waiting_sequences", "Sequences waiting to be scheduled.", stats.num_waiting),
            ("kv_cache_usage_ratio", "Part of the KV cache blocks in use, 0 to 1.", usage),
            ("step_seconds", "Duration of the last step.", stats.step_time_s),
            ("step_model_seconds", "Of that, in the model and sampler.", stats.model_time_s),
        )
        looked_up = "Prompt tokens looked up in the prefix cache."
        guessed = "Tokens guessed by speculation and verified."
        counters = (
            ("steps", "Steps run.", stats.num_steps),
            ("failed_steps", "Steps that raised.", stats.num_failed_steps),
            ("preemptions", "Sequences preempted.", stats.num_preemptions),
            ("prompt_tokens", "Prompt tokens computed, without cache hits.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("prefix_cache_queries", looked_up, stats.prefix_cache_queries),
            ("prefix_cache_hits", "Of those, tokens found.", stats.prefix_cache_hits),
            ("spec_decode_num_draft_tokens", guessed, stats.num_draft_tokens),
            ("spec_decode_num_accepted_tokens", "Of those, right.", stats.num_accepted_tokens),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"qwen_serve_engine_{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(f"qwen_serve_engine_{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


def _check_multiprocess(directory: str) -> None:
    is_shared = values.ValueClass is not values.MutexValue
    if not is_shared or os.environ.get(_MULTIPROCESS_VARIABLE) != directory:
        raise ValueError(
            f"{_MULTIPROCESS_VARIABLE} must be {directory!r} in the environment"
            " before this process imports prometheus_client"
        )
