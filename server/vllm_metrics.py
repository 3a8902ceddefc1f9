"""vLLM's names for what is measured already, so that its dashboards and autoscalers work.

Nothing is observed for them: each family is made out of one of ours at the scrape, with the sum of
what vLLM's labels do not tell apart. Buckets stay ours. Source of the names: vLLM 0.33's
vllm/v1/metrics/loggers.py; names that it has given up but that dashboards still ask for are listed
as well.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from server.request_timer import FINISHED

Labels = Mapping[str, str]
_ENGINE_LABEL = {"engine": "0"}


@dataclass(frozen=True, slots=True)
class _Alias:
    """`labels`: vLLM's labels beside its two usual ones, or None for a sample that is not in it."""

    name: str
    sources: tuple[str, ...]  # families of ours; their values are added up
    labels: Callable[[Labels], Labels | None] = lambda labels: {}
    is_of_model: bool = True  # has model_name and engine


def _engine(name: str, *sources: str) -> _Alias:
    return _Alias(f"vllm:{name}", tuple(f"qwen_serve_engine_{source}" for source in sources))


def _token_type(wanted: str) -> Callable[[Labels], Labels | None]:
    return lambda labels: {} if labels["gen_ai_token_type"] == wanted else None


def _finished_reason(labels: Labels) -> Labels:
    outcome = labels["outcome"]
    if outcome in ("length", "abort"):
        return {"finished_reason": outcome}
    return {"finished_reason": "stop" if outcome in FINISHED else "error"}


def _full_queue(labels: Labels) -> Labels | None:
    return {"reason": "max_num_queued_reqs"} if labels["reason"] == "overloaded" else None


def _http(labels: Labels) -> Labels:
    return {
        "method": labels["method"],
        "handler": labels["route"],
        **({"status": f"{labels['status'][0]}xx"} if "status" in labels else {}),
    }


def _cache_config(labels: Labels) -> Labels:
    return {"block_size": labels["block_size"], "num_gpu_blocks": labels["num_blocks"]}


ALIASES = (
    _engine("num_requests_running", "running_sequences"),
    _engine("num_requests_waiting", "waiting_sequences"),
    _engine("kv_cache_usage_perc", "kv_cache_usage_ratio"),
    _engine("gpu_cache_usage_perc", "kv_cache_usage_ratio"),  # its name until 0.10
    _engine("num_preemptions", "preemptions"),
    _engine("iteration_tokens_total", "step_tokens"),
    _engine("prompt_tokens", "prompt_tokens", "prefix_cache_hits"),
    _engine("generation_tokens", "generation_tokens"),
    _engine("prefix_cache_queries", "prefix_cache_queries"),
    _engine("prefix_cache_hits", "prefix_cache_hits"),
    _engine("spec_decode_num_draft_tokens", "spec_decode_num_draft_tokens"),
    _engine("spec_decode_num_accepted_tokens", "spec_decode_num_accepted_tokens"),
    _Alias("vllm:cache_config_info", ("qwen_serve_model_info",), _cache_config),
    _Alias("vllm:request_success", ("qwen_serve_requests",), _finished_reason),
    _Alias("vllm:admission_rejections", ("qwen_serve_refusals",), _full_queue),
    _Alias("vllm:request_prompt_tokens", ("gen_ai_client_token_usage",), _token_type("input")),
    _Alias("vllm:request_generation_tokens", ("gen_ai_client_token_usage",), _token_type("output")),
    _Alias("vllm:request_params_max_tokens", ("qwen_serve_request_max_tokens",)),
    _Alias("vllm:request_params_n", ("qwen_serve_request_choices",)),
    _Alias("vllm:time_to_first_token_seconds", ("gen_ai_server_time_to_first_token_seconds",)),
    _Alias("vllm:inter_token_latency_seconds", ("qwen_serve_inter_token_latency_seconds",)),
    # its name until 0.11
    _Alias("vllm:time_per_output_token_seconds", ("qwen_serve_inter_token_latency_seconds",)),
    _Alias(
        "vllm:request_time_per_output_token_seconds",
        ("gen_ai_server_time_per_output_token_seconds",),
    ),
    _Alias("vllm:e2e_request_latency_seconds", ("gen_ai_server_request_duration_seconds",)),
    _Alias("vllm:request_queue_time_seconds", ("qwen_serve_queue_time_seconds",)),
    _Alias("vllm:request_prefill_time_seconds", ("qwen_serve_prefill_time_seconds",)),
    _Alias("vllm:request_decode_time_seconds", ("qwen_serve_decode_time_seconds",)),
    _Alias("http_requests", ("qwen_serve_http_requests",), _http, is_of_model=False),
    _Alias(
        "http_request_duration_seconds",
        ("qwen_serve_http_request_duration_seconds",),
        _http,
        is_of_model=False,
    ),
)


def vllm_families(families: Iterable[Metric], model_name: str) -> list[Metric]:
    """The families under vLLM's names; those whose source is not there are left out."""
    by_name = {family.name: family for family in families}
    return [
        _translate(alias, [by_name[source] for source in alias.sources], model_name)
        for alias in ALIASES
        if all(source in by_name for source in alias.sources)
    ]


def _translate(alias: _Alias, sources: list[Metric], model_name: str) -> Metric:
    of_model = {"model_name": model_name, **_ENGINE_LABEL} if alias.is_of_model else {}
    sums: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for name, labels, value in _samples(alias, sources):
        sums[name, tuple({**of_model, **labels}.items())] += value
    result = Metric(alias.name, sources[0].documentation, sources[0].type)
    result.samples = [Sample(name, dict(labels), value) for (name, labels), value in sums.items()]
    return result


def _samples(alias: _Alias, sources: list[Metric]) -> Iterator[tuple[str, Labels, float]]:
    for source in sources:
        for sample in source.samples:
            labels = alias.labels(sample.labels)
            if labels is not None:
                edge = {"le": sample.labels["le"]} if "le" in sample.labels else {}
                name = alias.name + sample.name.removeprefix(source.name)
                yield name, {**labels, **edge}, sample.value
