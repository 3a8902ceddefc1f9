"""What /metrics says, read back with prometheus_client's own parser."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.messages import EngineStats
from server import metrics as metrics_module
from server.metrics import Metrics, forget_worker, share_between_workers

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    num_blocks=200,
    num_free_blocks=150,
    num_steps=11,
    num_preemptions=1,
    prompt_tokens=70,
    generation_tokens=80,
    prefix_cache_queries=100,
    prefix_cache_hits=30,
    num_draft_tokens=50,
    num_accepted_tokens=20,
    step_time_s=0.5,
    model_time_s=0.25,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics_module, "perf_counter", clock)
    return clock


def parse(body: bytes) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return samples


def reader(metrics: Metrics) -> Callable[..., float]:
    samples = parse(metrics.render()[0])

    def value(name: str, **labels: str) -> float:
        return samples[f"qwen_serve_{name}", tuple(sorted(labels.items()))]

    return value


def test_engine_stats_are_read_at_the_scrape() -> None:
    newest = [EngineStats()]
    metrics = Metrics("m", lambda: newest[0])
    value = reader(metrics)
    assert value("engine_kv_cache_usage_ratio", model_name="m") == 0
    newest[0] = STATS
    value = reader(metrics)
    expected = {
        "engine_running_sequences": 3,
        "engine_waiting_sequences": 2,
        "engine_kv_cache_usage_ratio": 0.25,
        "engine_steps_total": 11,
        "engine_preemptions_total": 1,
        "engine_prompt_tokens_total": 70,
        "engine_generation_tokens_total": 80,
        "engine_prefix_cache_queries_total": 100,
        "engine_prefix_cache_hits_total": 30,
        "engine_spec_decode_num_draft_tokens_total": 50,
        "engine_spec_decode_num_accepted_tokens_total": 20,
        "engine_step_seconds": 0.5,
        "engine_step_model_seconds": 0.25,
    }
    assert {name: value(name, model_name="m") for name in expected} == expected


def test_a_request_from_start_to_end(clock: Clock) -> None:
    metrics = Metrics("m", EngineStats)
    timer = metrics.request_started("/v1/chat/completions")
    assert reader(metrics)("requests_in_progress", model_name="m") == 1
    clock.now += 2
    timer.first_token()
    clock.now += 0.25
    timer.token(1)
    clock.now += 3
    timer.token(3)
    for outcome in ("stop", "abort"):  # the second is ignored
        timer.finished(outcome=outcome, prompt_tokens=10, cached_tokens=4, output_tokens=5)
    value = reader(metrics)
    assert value("requests_in_progress", model_name="m") == 0
    endpoint = {"model_name": "m", "endpoint": "/v1/chat/completions"}
    assert value("requests_total", outcome="stop", **endpoint) == 1
    with pytest.raises(KeyError):
        value("requests_total", outcome="abort", **endpoint)
    assert value("prompt_tokens_total", model_name="m") == 10
    assert value("cached_prompt_tokens_total", model_name="m") == 4
    assert value("generation_tokens_total", model_name="m") == 5
    assert value("time_to_first_token_seconds_count", model_name="m") == 1
    assert value("time_to_first_token_seconds_sum", model_name="m") == 2
    assert value("inter_token_latency_seconds_count", model_name="m") == 4
    assert value("inter_token_latency_seconds_sum", model_name="m") == pytest.approx(3.25)
    assert value("inter_token_latency_seconds_bucket", model_name="m", le="0.3") == 1
    assert value("inter_token_latency_seconds_bucket", model_name="m", le="1.0") == 4
    assert value("request_duration_seconds_sum", model_name="m") == pytest.approx(5.25)


def test_http_responses_are_counted_by_route_and_bounded_method() -> None:
    metrics = Metrics("m", EngineStats)
    metrics.http_response("GET", "/v1/models/{model}", 404, 0.1)
    metrics.http_response("BREW", "unmatched", 405, 0.1)
    metrics.http_response("MELT", "unmatched", 405, 0.1)
    value = reader(metrics)
    model_route = {"method": "GET", "route": "/v1/models/{model}"}
    assert value("http_requests_total", status="404", **model_route) == 1
    assert value("http_requests_total", method="other", route="unmatched", status="405") == 2
    assert value("http_request_duration_seconds_count", **model_route) == 1


def test_content_type_and_two_instances_do_not_clash() -> None:
    first, second = Metrics("a", EngineStats), Metrics("b", EngineStats)
    first.request_started("e")
    assert first.render()[1].startswith("text/plain; version=")
    assert reader(second)("requests_in_progress", model_name="b") == 0


def test_every_name_is_ours_and_no_created_series() -> None:
    names = {name for name, _ in parse(Metrics("m", EngineStats).render()[0])}
    assert all(name.startswith("qwen_serve_") for name in names)
    assert not any(name.endswith("_created") for name in names)


WORKER = """
import sys
from engine.messages import EngineStats
from server.metrics import Metrics
metrics = Metrics("m", lambda: EngineStats(num_running=3, num_steps=7), sys.argv[1])
timer = metrics.request_started("e")
timer.first_token(); timer.token(1)
timer.finished(outcome="stop", prompt_tokens=10, cached_tokens=0, output_tokens=2)
metrics.request_started("e")
metrics.http_response("GET", "/", 200, 0.1)
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
    samples = parse(asked.communicate(b"\n")[0])
    idle.communicate(b"\n")

    def value(name: str, **labels: str) -> float:
        return samples[f"qwen_serve_{name}", tuple(sorted(labels.items()))]

    assert value("requests_total", model_name="m", endpoint="e", outcome="stop") == 3
    assert value("prompt_tokens_total", model_name="m") == 30
    assert value("inter_token_latency_seconds_count", model_name="m") == 3
    assert value("http_requests_total", method="GET", route="/", status="200") == 3
    assert value("requests_in_progress", model_name="m") == 2  # the killed one's is gone
    assert value("engine_running_sequences", model_name="m") == 3
    assert value("engine_steps_total", model_name="m") == 7


def test_multiprocess_without_the_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        Metrics("m", EngineStats, str(tmp_path))
    assert os.listdir(tmp_path) == []
