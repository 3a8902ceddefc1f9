"""A real Prometheus with our rules scrapes a real server and answers the dashboard's questions."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from engine.fake import FakeEngine
from server.config import ServerConfig
from tests.deploy.test_monitoring import PROMETHEUS, alerts, dashboard_expressions, read_yaml
from tests.e2e.running_server import serve
from tests.server.small_app import END, small_state
from tests.waiting import wait_until

KEY = "sk-for-prometheus"
SCRAPE = "200ms"
# answered with a value by any server that is up and has been asked something
_ANSWERED = ("up{", "engine_ready", "engine_running_sequences", "requests_in_progress")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Our configuration, scraping `target` with a key, and often."""
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "key").write_text(KEY)
    job["authorization"] = {"credentials_file": str(folder / "key")}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
            cwd=folder,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: is_ready(client))
            yield client
    finally:
        process.terminate()
        process.wait()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, expression: str) -> list[Any]:
    reply = client.get("/api/v1/query", params={"query": expression}).json()
    assert reply["status"] == "success", (expression, reply)
    result: list[Any] = reply["data"]["result"]
    return result


def rules(client: httpx.Client) -> list[tuple[str, str, str]]:
    """Name, health and state of each rule."""
    (group,) = client.get("/api/v1/rules").json()["data"]["groups"]
    return [(rule["name"], rule["health"], rule["state"]) for rule in group["rules"]]


def filled_in(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    for name, value in (("$__rate_interval", "5s"), ("$instance", ".*"), ("$model", ".*")):
        expression = expression.replace(name, value)
    return expression


def the_p99_of(histogram: str) -> str:
    """The dashboard's expression."""
    (expression,) = [
        filled_in(each)
        for each in dashboard_expressions()
        if f"{histogram}_bucket" in each and each.startswith("histogram_quantile(0.99")
    ]
    return expression


def test_it_scrapes_and_answers(tmp_path: Path) -> None:
    state = small_state(ServerConfig(api_keys=(KEY,)), FakeEngine(eos_token_ids=[END]))
    body = {"model": "org/small", "prompt": "ab", "max_tokens": 5, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(state) as server, prometheus(tmp_path, server.url.removeprefix("http://")) as client:
        asking = threading.Event()

        def ask_the_server() -> None:
            with httpx.Client(headers=headers) as user:
                while not asking.wait(0.05):
                    user.post(f"{server.url}/v1/completions", json=body).raise_for_status()

        user = threading.Thread(target=ask_the_server)
        user.start()
        try:
            for series in ("time_to_first_token_seconds", "request_duration_seconds"):
                expression = the_p99_of(f"gen_ai_server_{series}")
                # of two scrapes without a request between them it is no number
                (answer,) = wait_until(partial(ask, client, f"({expression}) > 0"))
                assert float(answer["value"][1]) < 1000
            ended = 'rate(qwen_serve_requests_total{outcome="length"}[5s]) > 0'
            assert wait_until(partial(ask, client, ended))
            for expression in dashboard_expressions():
                if not expression.startswith("label_values"):
                    result = ask(client, filled_in(expression))
                    assert result or not any(name in expression for name in _ANSWERED), expression
        finally:
            asking.set()
            user.join()
        expected = [(alert["alert"], "ok", "inactive") for alert in alerts()]
        wait_until(lambda: rules(client) == expected)  # evaluated, after the first scrape too


def test_it_notices_a_server_that_is_away(tmp_path: Path) -> None:
    with prometheus(tmp_path, f"127.0.0.1:{free_port()}") as client:
        expression = next(alert["expr"] for alert in alerts() if alert["alert"] == "QwenServeDown")
        (down,) = wait_until(lambda: ask(client, expression))
        assert down["metric"]["job"] == "qwen-serve"


@pytest.fixture(autouse=True)
def quiet_uvicorn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
