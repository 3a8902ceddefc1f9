"""The engine's newest statistics as metrics, read at each scrape."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from engine.messages import STEP_TOKEN_BOUNDS, EngineInfo, EngineStats

_INFO_FIELDS = ("dtype", "device", "backend", "max_model_len", "num_blocks", "block_size")


class EngineView(Protocol):
    """What is read of an engine.client.EngineClient."""

    def stats(self) -> EngineStats:
        """The newest snapshot."""
        ...

    def health(self) -> str | None:
        """None when the engine answers."""
        ...

    def silent_s(self) -> float:
        """For how long the engine has had requests and said nothing."""
        ...


class EngineCollector:
    """All of it as qwen_serve_engine_*, and the model that it has loaded.

    Attributes:
        info: of the model; None until it is loaded.
    """

    def __init__(self, model_name: str, engine: EngineView) -> None:
        self.info: EngineInfo | None = None
        self._model_name = model_name
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client wants them."""
        stats = self._engine.stats()
        for name, text, value in self._gauges(stats):
            gauge = GaugeMetricFamily(f"qwen_serve_engine_{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, text, value in _counters(stats):
            counter = CounterMetricFamily(f"qwen_serve_engine_{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter
        yield self._step_sizes(stats)
        if self.info is not None:
            yield self._model_info(self.info)

    def _gauges(self, stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
        used_blocks = stats.num_blocks - stats.num_free_blocks
        usage = used_blocks / stats.num_blocks if stats.num_blocks else 0.0
        return (
            ("ready", "Whether the engine takes requests, 0 or 1.", self._engine.health() is None),
            ("silent_seconds", "Since it has said anything, with work.", self._engine.silent_s()),
            ("running_sequences", "Sequences in the current batch.", stats.num_running),
            ("waiting_sequences", "Sequences waiting to be scheduled.", stats.num_waiting),
            ("kv_cache_usage_ratio", "Part of the KV cache blocks in use, 0 to 1.", usage),
            ("step_seconds", "Duration of the last step.", stats.step_time_s),
            ("step_model_seconds", "Of that, in the model and sampler.", stats.model_time_s),
        )

    def _step_sizes(self, stats: EngineStats) -> Metric:
        bounds = (*(str(float(bound)) for bound in STEP_TOKEN_BOUNDS), "+Inf")
        buckets = list(zip(bounds, accumulate(stats.step_sizes), strict=True))
        family = HistogramMetricFamily(
            "qwen_serve_engine_step_tokens", "Tokens computed in a step.", labels=["model_name"]
        )
        family.add_metric([self._model_name], buckets, stats.num_step_tokens)
        return family

    def _model_info(self, info: EngineInfo) -> Metric:
        family = GaugeMetricFamily(
            "qwen_serve_model_info", "Always 1.", labels=["model_name", *_INFO_FIELDS]
        )
        family.add_metric([self._model_name, *(str(getattr(info, f)) for f in _INFO_FIELDS)], 1)
        return family


def _counters(stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    looked_up = "Prompt tokens looked up in the prefix cache."
    guessed = "Tokens guessed by speculation and verified."
    return (
        ("restarts", "Engines before this one.", stats.num_restarts),
        ("steps", "Steps run.", stats.num_steps),
        ("failed_steps", "Steps that raised.", stats.num_failed_steps),
        ("finished_sequences", "Sequences that have ended.", stats.num_finished),
        ("preemptions", "Sequences preempted.", stats.num_preemptions),
        ("prompt_tokens", "Prompt tokens computed, without cache hits.", stats.prompt_tokens),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens),
        ("prefix_cache_queries", looked_up, stats.prefix_cache_queries),
        ("prefix_cache_hits", "Of those, tokens found.", stats.prefix_cache_hits),
        ("spec_decode_num_draft_tokens", guessed, stats.num_draft_tokens),
        ("spec_decode_num_accepted_tokens", "Of those, right.", stats.num_accepted_tokens),
    )
