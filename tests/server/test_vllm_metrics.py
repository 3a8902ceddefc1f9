"""vLLM's names: there when asked for, with the values of ours."""

from functools import partial

from engine.fake import DEFAULT_INFO
from engine.messages import Timing
from server.metrics import Metrics
from server.request_record import RequestRecord
from tests.server.metric_samples import FixedEngine, parse, value_of
from tests.server.test_metrics import STATS

# what vLLM 0.33's own Grafana dashboard asks for, as far as this server measures it
DASHBOARD = (
    *("vllm:e2e_request_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_sum"),
    *("vllm:e2e_request_latency_seconds_count", "vllm:time_to_first_token_seconds_bucket"),
    *("vllm:inter_token_latency_seconds_bucket", "vllm:inter_token_latency_seconds_sum"),
    *("vllm:request_time_per_output_token_seconds_bucket", "vllm:prompt_tokens_total"),
    *("vllm:generation_tokens_total", "vllm:num_requests_running", "vllm:num_requests_waiting"),
    *("vllm:kv_cache_usage_perc", "vllm:request_prompt_tokens_bucket"),
    *("vllm:request_generation_tokens_bucket", "vllm:request_success_total"),
    *("vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum"),
    *("vllm:request_decode_time_seconds_sum", "vllm:iteration_tokens_total_count"),
)


def metrics_after_two_requests(*, has_vllm_names: bool) -> Metrics:
    metrics = Metrics("m", FixedEngine(STATS), has_vllm_names=has_vllm_names)
    metrics.describe_engine(DEFAULT_INFO)
    ends = (("chat", "m", "tool_calls"), ("text_completion", "alias", "kv_cache_exceeded"))
    for operation, model, outcome in ends:
        record = RequestRecord({"type": "http", "method": "POST"})
        timer = metrics.request_started(record, "/e", operation, model)
        timer.first_token(Timing(0.5, 0.25))
        timer.token(1)
        timer.finished(outcome=outcome, prompt_tokens=10, cached_tokens=0, output_tokens=2)
        record.status, record.refusal = 503, "overloaded"
        metrics.http_response(record)
    return metrics


def test_they_are_off_by_default() -> None:
    assert b"vllm" not in metrics_after_two_requests(has_vllm_names=False).render()[0]


def test_the_values_are_ours() -> None:
    value = partial(value_of, parse(metrics_after_two_requests(has_vllm_names=True).render()[0]))
    of_model = {"model_name": "m", "engine": "0"}
    assert value("vllm:num_requests_running", **of_model) == 3
    assert value("vllm:num_requests_waiting", **of_model) == 2
    assert value("vllm:kv_cache_usage_perc", **of_model) == 0.25
    assert value("vllm:prompt_tokens_total", **of_model) == 70 + 30  # computed and cached
    assert value("vllm:generation_tokens_total", **of_model) == 80
    assert value("vllm:prefix_cache_hits_total", **of_model) == 30
    assert value("vllm:iteration_tokens_total_count", **of_model) == 11
    assert value("vllm:spec_decode_num_accepted_tokens_total", **of_model) == 20
    assert value("vllm:request_success_total", finished_reason="stop", **of_model) == 1
    assert value("vllm:request_success_total", finished_reason="error", **of_model) == 1
    assert value("vllm:admission_rejections_total", reason="max_num_queued_reqs", **of_model) == 2
    assert value("vllm:cache_config_info", num_gpu_blocks="256", block_size="16", **of_model) == 1
    assert value("http_requests_total", status="5xx", method="POST", handler="unknown") == 2


def test_what_vllm_does_not_tell_apart_is_added_up() -> None:
    samples = parse(metrics_after_two_requests(has_vllm_names=True).render()[0])
    value = partial(value_of, samples)
    for name in ("e2e_request_latency", "time_to_first_token", "request_queue_time"):
        assert value(f"vllm:{name}_seconds_count", model_name="m", engine="0") == 2
        assert value(f"vllm:{name}_seconds_bucket", le="+Inf") == 2
    assert value("vllm:request_queue_time_seconds_sum") == 1.0
    assert value("vllm:request_queue_time_seconds_bucket", le="0.25") == 0
    assert value("vllm:request_generation_tokens_sum") == 4


def test_a_published_dashboard_finds_its_names() -> None:
    names = {name for name, _ in parse(metrics_after_two_requests(has_vllm_names=True).render()[0])}
    assert set(DASHBOARD) <= names
