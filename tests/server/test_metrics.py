"""What /metrics says, read back with prometheus_client's own parser."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from engine.fake import DEFAULT_INFO
from engine.messages import EngineRequest, EngineStats, SamplingParams, Timing
from server import request_record, request_timer
from server.metrics import Metrics, forget_worker, share_between_workers
from server.request_record import RequestRecord
from server.request_timer import RequestTimer
from tests.server.metric_samples import FixedEngine, parse, value_of

STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    num_blocks=200,
    num_free_blocks=150,
    num_steps=11,
    num_restarts=4,
    num_finished=9,
    num_preemptions=1,
    prompt_tokens=70,
    generation_tokens=80,
    prefix_cache_queries=100,
    prefix_cache_hits=30,
    num_draft_tokens=50,
    num_accepted_tokens=20,
    step_sizes=(4, 5, 0, 0, 2, *[0] * 9),
    num_step_tokens=150,
    step_time_s=0.5,
    model_time_s=0.25,
)
CHAT = "/v1/chat/completions"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(request_timer, "perf_counter", clock)
    monkeypatch.setattr(request_record, "perf_counter", clock)
    return clock


def reader(metrics: Metrics) -> Callable[..., float]:
    return partial(value_of, parse(metrics.render()[0]))


def record_of(key: str = "", started_s: float = 100.0) -> RequestRecord:
    return RequestRecord({"type": "http", "method": "POST", "qwen.key": key}, started_s=started_s)


def start(metrics: Metrics, key: str = "") -> RequestTimer:
    return metrics.request_started(record_of(key), CHAT, "chat", "alias")


def test_engine_stats_are_read_at_the_scrape() -> None:
    engine = FixedEngine(problem="not yet")
    metrics = Metrics("m", engine)
    value = reader(metrics)
    assert value("qwen_serve_engine_kv_cache_usage_ratio", model_name="m") == 0
    assert value("qwen_serve_engine_ready", model_name="m") == 0
    engine.newest, engine.problem = STATS, None
    value = reader(metrics)
    expected = {
        "ready": 1,
        "silent_seconds": 0.5,
        "running_sequences": 3,
        "waiting_sequences": 2,
        "kv_cache_usage_ratio": 0.25,
        "restarts_total": 4,
        "steps_total": 11,
        "finished_sequences_total": 9,
        "preemptions_total": 1,
        "prompt_tokens_total": 70,
        "generation_tokens_total": 80,
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 30,
        "spec_decode_num_draft_tokens_total": 50,
        "spec_decode_num_accepted_tokens_total": 20,
        "step_seconds": 0.5,
        "step_model_seconds": 0.25,
    }
    found = {name: value(f"qwen_serve_engine_{name}", model_name="m") for name in expected}
    assert found == expected
    step_tokens = {"1.0": 4, "8.0": 9, "32.0": 9, "64.0": 11, "+Inf": 11}
    for le, count in step_tokens.items():
        assert value("qwen_serve_engine_step_tokens_bucket", le=le) == count
    assert value("qwen_serve_engine_step_tokens_count") == 11
    assert value("qwen_serve_engine_step_tokens_sum") == 150


def test_a_request_from_start_to_end(clock: Clock) -> None:
    metrics = Metrics("m", FixedEngine())
    clock.now += 1  # reading and planning count, too
    timer = start(metrics)
    assert reader(metrics)("qwen_serve_requests_in_progress", model_name="m") == 1
    sampling = SamplingParams(max_tokens=9)
    timer.planned([EngineRequest(id="r", prompt_token_ids=[1], sampling=sampling)] * 2)
    clock.now += 1
    timer.first_token(Timing(0.5, 1.25))
    clock.now += 0.25
    timer.token(1)
    clock.now += 3
    timer.token(3)
    for outcome in ("stop", "abort"):  # the second is ignored
        timer.finished(outcome=outcome, prompt_tokens=10, cached_tokens=4, output_tokens=5)
    value = reader(metrics)
    assert value("qwen_serve_requests_in_progress", model_name="m") == 0
    assert value("qwen_serve_requests_total", model_name="m", endpoint=CHAT, outcome="stop") == 1
    assert value("qwen_serve_cached_prompt_tokens_total", model_name="m") == 4
    assert value("qwen_serve_inter_token_latency_seconds_count", model_name="m") == 4
    assert value("qwen_serve_inter_token_latency_seconds_sum") == pytest.approx(3.25)
    assert value("qwen_serve_inter_token_latency_seconds_bucket", le="0.3") == 1
    assert value("qwen_serve_inter_token_latency_seconds_bucket", le="1.0") == 4
    assert value("qwen_serve_queue_time_seconds_sum", model_name="m") == 0.5
    assert value("qwen_serve_prefill_time_seconds_sum", model_name="m") == 1.25
    assert value("qwen_serve_decode_time_seconds_sum", model_name="m") == 3.25
    assert value("qwen_serve_request_choices_sum", model_name="m") == 2
    assert value("qwen_serve_request_max_tokens_sum", model_name="m") == 9
    gen_ai = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "qwen-serve",
        "gen_ai_request_model": "alias",
        "gen_ai_response_model": "m",
    }
    assert value("gen_ai_server_time_to_first_token_seconds_sum", **gen_ai) == 2
    assert value("gen_ai_server_request_duration_seconds_sum", error_type="", **gen_ai) == 5.25
    assert value("gen_ai_server_time_per_output_token_seconds_sum", **gen_ai) == 3.25 / 4
    assert value("gen_ai_client_token_usage_sum", gen_ai_token_type="input", **gen_ai) == 10
    assert value("gen_ai_client_token_usage_sum", gen_ai_token_type="output", **gen_ai) == 5
    assert timer.phases_s() == {"queue": 0.5, "prefill": 1.25, "decode": 3.25}


def test_an_error_has_its_type_and_no_time_per_token(clock: Clock) -> None:
    metrics = Metrics("m", FixedEngine())
    timer = start(metrics)
    timer.first_token()
    clock.now += 1
    timer.token(1)
    timer.finished(outcome="overloaded", prompt_tokens=1, cached_tokens=0, output_tokens=2)
    samples = parse(metrics.render()[0])
    name = "gen_ai_server_request_duration_seconds_count"
    assert value_of(samples, name, error_type="overloaded") == 1
    assert not any("time_per_output_token" in name for name, _ in samples)
    assert value_of(samples, "qwen_serve_queue_time_seconds_count") == 0  # it was not told


def http(metrics: Metrics, method: str, status: int, *, key: str = "", route: str = "") -> None:
    record = record_of(key)
    record.scope["method"] = method
    if route:
        record.scope["route"] = type("Route", (), {"path": route})
    record.status = status
    record.end()
    metrics.http_response(record)


def test_http_responses_are_counted_by_route_and_bounded_method() -> None:
    metrics = Metrics("m", FixedEngine())
    http(metrics, "GET", 404, route="/v1/models/{model}")
    http(metrics, "BREW", 405)
    http(metrics, "MELT", 405)
    value = reader(metrics)
    of_route = {"method": "GET", "route": "/v1/models/{model}"}
    assert value("qwen_serve_http_requests_total", status="404", **of_route) == 1
    unknown = {"method": "other", "route": "unknown"}
    assert value("qwen_serve_http_requests_total", status="405", **unknown) == 2
    assert value("qwen_serve_http_request_duration_seconds_count", **of_route) == 1


def test_keys_have_tokens_and_requests_of_their_own() -> None:
    metrics = Metrics("m", FixedEngine())
    for key in ("team-a", "team-b", "team-a", ""):
        timer = start(metrics, key)
        timer.finished(outcome="stop", prompt_tokens=10, cached_tokens=0, output_tokens=3)
        http(metrics, "POST", 200, key=key)
    http(metrics, "POST", 429, key="team-b")
    value = reader(metrics)
    assert value("qwen_serve_key_tokens_total", key="team-a", type="input") == 20
    assert value("qwen_serve_key_tokens_total", key="team-b", type="output") == 3
    assert value("qwen_serve_key_requests_total", key="team-a", status="200") == 2
    assert value("qwen_serve_key_requests_total", key="team-b", status="429") == 1


def test_only_so_many_keys_are_told_apart() -> None:
    metrics = Metrics("m", FixedEngine())
    for i in range(250):
        http(metrics, "POST", 200, key=f"key-{i}")
    samples = parse(metrics.render()[0])
    keys = {dict(labels)["key"] for name, labels in samples if name.startswith("qwen_serve_key_r")}
    assert len(keys) == 101
    assert value_of(samples, "qwen_serve_key_requests_total", key="other") == 150
    assert value_of(samples, "qwen_serve_key_requests_total", key="key-0") == 1


def test_refusals_are_counted_by_reason_from_nought() -> None:
    metrics = Metrics("m", FixedEngine())
    assert reader(metrics)("qwen_serve_refusals_total", reason="overloaded") == 0
    record = record_of()
    record.status, record.refusal = 503, "overloaded"
    metrics.http_response(record)
    assert reader(metrics)("qwen_serve_refusals_total", reason="overloaded") == 1


def test_resumptions_and_lag() -> None:
    metrics = Metrics("m", FixedEngine())
    metrics.requests_resumed(3)
    metrics.loop_lagged(0.02)
    value = reader(metrics)
    assert value("qwen_serve_resumed_requests_total", model_name="m") == 3
    assert value("qwen_serve_event_loop_lag_seconds_bucket", le="0.025") == 1
    assert value("qwen_serve_event_loop_lag_seconds_bucket", le="0.01") == 0


def test_what_is_served_and_by_what() -> None:
    metrics = Metrics("m", FixedEngine())
    assert "model_info" not in metrics.render()[0].decode()
    metrics.describe_engine(DEFAULT_INFO)
    value = reader(metrics)
    assert value("qwen_serve_model_info", model_name="m", backend="fake", num_blocks="256") == 1
    assert value("qwen_serve_build_info") == 1


def test_content_type_and_two_instances_do_not_clash() -> None:
    first, second = Metrics("a", FixedEngine()), Metrics("b", FixedEngine())
    start(first)
    assert first.render()[1].startswith("text/plain; version=")
    assert reader(second)("qwen_serve_requests_in_progress", model_name="b") == 0


def test_every_name_is_ours_or_of_the_conventions_and_no_created_series() -> None:
    metrics = Metrics("m", FixedEngine())
    start(metrics).finished(outcome="stop", prompt_tokens=1, cached_tokens=0, output_tokens=1)
    names = {name for name, _ in parse(metrics.render()[0])}
    assert all(name.startswith(("qwen_serve_", "gen_ai_")) for name in names)
    assert not any(name.endswith("_created") for name in names)


WORKER = """
import sys
from engine.messages import EngineStats
from server.metrics import Metrics
from server.request_record import RequestRecord
from tests.server.metric_samples import FixedEngine
engine = FixedEngine(EngineStats(num_running=3, num_steps=7))
metrics = Metrics("m", engine, sys.argv[1], has_vllm_names=True)
record = RequestRecord({"type": "http", "method": "GET"})
timer = metrics.request_started(record, "e", "chat", "m")
timer.first_token(); timer.token(1)
timer.finished(outcome="stop", prompt_tokens=10, cached_tokens=0, output_tokens=2)
metrics.request_started(record, "e", "chat", "m")
metrics.http_response(record)
print("ready", flush=True)
sys.stdin.readline()
sys.stdout.buffer.write(metrics.render()[0])
"""


def test_workers_are_added_up_and_the_engine_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    (directory / "counter_1.db").write_bytes(b"of an earlier run")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # restored afterwards
    share_between_workers(directory)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
    killed, asked, idle = workers
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    forget_worker(directory, killed.pid)
    value = partial(value_of, parse(asked.communicate(b"\n")[0]))
    idle.communicate(b"\n")
    assert value("qwen_serve_requests_total", model_name="m", endpoint="e", outcome="stop") == 3
    assert value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 30
    assert value("qwen_serve_inter_token_latency_seconds_count", model_name="m") == 3
    assert value("qwen_serve_http_requests_total", method="GET", status="499") == 3
    assert value("qwen_serve_requests_in_progress", model_name="m") == 2  # the killed one's is gone
    assert value("qwen_serve_engine_running_sequences", model_name="m") == 3
    assert value("qwen_serve_engine_steps_total", model_name="m") == 7
    # and so is what is derived
    assert value("vllm:num_requests_running", model_name="m", engine="0") == 3
    assert value("vllm:request_success_total", finished_reason="stop") == 3
    assert value("vllm:request_prompt_tokens_sum") == 30


def test_multiprocess_without_the_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        Metrics("m", FixedEngine(), str(tmp_path))
    assert os.listdir(tmp_path) == []
