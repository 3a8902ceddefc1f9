"""Health follows the engine, liveness its progress; /metrics is what Metrics renders."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.fake import FakeEngine
from engine.messages import Fault
from server.config import ServerConfig
from tests.server.small_app import client_of, small_state


async def test_all_is_well() -> None:
    async with client_of(small_state()) as client:
        for path in ("/livez", "/readyz", "/health"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "ok"})
            assert response.headers["cache-control"] == "no-store"


async def test_dead_engine_is_not_ready_but_the_process_lives() -> None:
    engine = FakeEngine()
    async with client_of(small_state(engine=engine)) as client:
        engine.fail(Fault("engine_dead", "The engine process died."))
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/health"):
            response = await client.get(path)
            assert response.status_code == 503
            assert response.json() == {
                "status": "unavailable",
                "reason": "The engine process died.",
            }
        engine.revive()
        assert (await client.get("/readyz")).status_code == 200


async def test_liveness_follows_the_progress_of_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine()
    state = small_state(ServerConfig(step_timeout=60), engine=engine)
    async with client_of(state) as client:
        monkeypatch.setattr(engine, "silent_s", lambda: 59.0)
        assert (await client.get("/livez")).status_code == 200
        monkeypatch.setattr(engine, "silent_s", lambda: 61.0)
        response = await client.get("/livez")
        assert response.status_code == 503
        assert response.json() == {
            "status": "unavailable",
            "reason": "The engine has requests and has said nothing for 61 s.",
        }
        monkeypatch.setattr(engine, "silent_s", lambda: 0.0)
        assert (await client.get("/livez")).status_code == 200


async def test_health_needs_no_key() -> None:
    state = small_state(ServerConfig(api_keys=("sk-1",)))
    async with client_of(state) as client:
        for path in ("/livez", "/readyz", "/health"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


async def test_metrics_are_prometheus_text() -> None:
    async with client_of(small_state()) as client:
        await client.get("/v1/models")
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert response.headers["content-type"].count("charset") == 1
    samples = {
        (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["qwen_serve_http_requests_total", "/v1/models", "200"] == 1
    assert samples["qwen_serve_engine_running_sequences", None, None] == 0
