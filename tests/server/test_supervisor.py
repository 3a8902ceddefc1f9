"""server/supervisor.py with real processes: start, failure, restart, drain, and no orphans.

The engine is played by tests/server/children.py; so is the worker, except in the last tests.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from server.supervisor import StartError, listen
from tests.server.deadly_engine import DEADLY
from tests.server.metric_samples import parse, value_of
from tests.server.supervised import API_KEY
from tests.waiting import DEADLINE_S, wait_until

REPOSITORY = Path(__file__).parent.parent.parent


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Supervised:
    """A running supervisor and what it said."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.stdout = (folder / "stdout").open("w+")
        self.stderr = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.supervised", str(folder), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdin=subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=self.stderr,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        self.stderr.close()

    def said(self, name: str) -> str:
        return (self.folder / name).read_text()

    def pids(self, kind: str) -> list[int]:
        return [int(path.suffix[1:]) for path in self.folder.glob(f"{kind}.*")]

    def started(self, workers: int) -> list[int]:
        """Process IDs of the engine and of all HTTP workers, which write them in their own time."""
        wait_until(lambda: len(self.pids("engine") + self.pids("worker")) == 1 + workers)
        return self.pids("engine") + self.pids("worker")

    def pid(self, kind: str) -> int:
        return wait_until(lambda: self.pids(kind))[0]

    def wait_ready(self) -> str:
        def ready() -> str:
            assert self.process.poll() is None, self.said("stderr")
            return self.said("stdout")

        return wait_until(ready)

    def ask_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started = []

    def begin(
        engine: str = "good", worker: str = "good", workers: int = 1, model: str = "/m"
    ) -> Supervised:
        started.append(Supervised(tmp_path, engine, worker, str(workers), model))
        return started[-1]

    yield begin
    for supervised in started:
        supervised.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_it_says_when_it_is_ready_and_leaves_nothing_behind(start: Start, workers: int) -> None:
    supervised = start(workers=workers)
    line = supervised.wait_ready()
    port = supervised.said("port")
    assert re.fullmatch(rf"ready: http://127\.0\.0\.1:{port}/v1 model m in \d+\.\d s\n", line), line
    (runtime,) = [path for path in supervised.temporary.iterdir() if "qwen-serve" in path.name]
    assert runtime.stat().st_mode & 0o777 == 0o700
    pids = supervised.started(workers)
    supervised.ask_stop()
    assert supervised.wait() == 0
    assert not any(is_alive(pid) for pid in pids)
    assert not runtime.exists()


@pytest.mark.parametrize(
    ("engine", "worker", "message"),
    [
        ("refuse", "wait", "the engine does not like it"),
        ("wait", "refuse", "the worker does not like it"),
        ("crash", "wait", "the engine ended with exit status 7"),
        ("wait", "crash", "HTTP worker 0 ended with exit status 7"),
    ],
)
def test_a_child_that_ends_before_ready_ends_it_all(
    start: Start, engine: str, worker: str, message: str
) -> None:
    supervised = start(engine, worker)
    assert supervised.wait() == 1
    errors = [line for line in supervised.said("stderr").splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {message}"]
    assert "Traceback" not in supervised.said("stderr")
    assert not any(is_alive(p) for p in supervised.pids("engine") + supervised.pids("worker"))


def test_a_log_line_of_a_child_is_passed_on(start: Start) -> None:
    supervised = start("refuse", "wait")
    supervised.wait()
    assert "a log line\n" in supervised.said("stderr")


@pytest.mark.parametrize("kind", ["engine", "worker"])
def test_a_child_that_dies_later_is_started_again(start: Start, kind: str) -> None:
    supervised = start()
    supervised.wait_ready()
    os.kill(supervised.pid(kind), signal.SIGKILL)
    wait_until(lambda: len(supervised.pids(kind)) == 2)
    assert supervised.process.poll() is None
    logged = [json.loads(line) for line in supervised.said("stderr").splitlines()]
    (record,) = [entry for entry in logged if entry["event"] == "child ended"]
    assert "SIGKILL" in record["how"]
    supervised.ask_stop()
    assert supervised.wait() == 0


@pytest.mark.parametrize("engine", ["good", "wait"])
def test_children_do_not_outlive_a_killed_supervisor(start: Start, engine: str) -> None:
    supervised = start(engine)
    pids = [supervised.pid("engine"), supervised.pid("worker")]
    supervised.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_second_signal_kills(start: Start) -> None:
    supervised = start(worker="stubborn")
    supervised.wait_ready()
    worker = supervised.pid("worker")
    supervised.ask_stop()
    wait_until(lambda: "stopping" in supervised.said("stderr"))
    assert is_alive(worker)
    supervised.ask_stop()
    supervised.wait()
    assert not is_alive(worker)


def test_a_signal_while_loading_stops(start: Start) -> None:
    supervised = start("wait", "wait")
    pids = [supervised.pid("engine"), supervised.pid("worker")]
    supervised.ask_stop()
    assert supervised.wait() == 0
    assert not any(is_alive(pid) for pid in pids)


def test_no_key_is_in_a_list_of_processes(start: Start) -> None:
    supervised = start()
    supervised.wait_ready()
    for pid in (supervised.pid("engine"), supervised.pid("worker")):
        for name in ("cmdline", "environ"):
            assert API_KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_other_users_of_the_machine_cannot_reach_the_queue(start: Start) -> None:
    start().wait_ready()
    lines = Path("/proc/net/unix").read_text().splitlines()
    queues = {Path(path) for line in lines if (path := line.split()[-1]).endswith("/engine")}
    folders = [path.parent for path in queues if path.parent.name.startswith("qwen-serve-")]
    ours = [folder for folder in folders if folder.exists()]  # others may have just ended
    assert ours and {folder.stat().st_mode & 0o777 for folder in ours} == {0o700}


def test_a_port_in_use() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port)


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
    with pytest.raises(StartError, match=r"nowhere\.invalid cannot be listened on"):
        listen("nowhere.invalid", 0)


# From here on the worker is the real one.


def get(port: str, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(headers=headers, timeout=DEADLINE_S) as client:
        return client.get(f"http://127.0.0.1:{port}{path}")


@pytest.mark.real_model
def test_the_worker_answers_while_the_engine_loads(start: Start, smollm2_path: Path) -> None:
    supervised = start("late", "real", model=str(smollm2_path))
    wait_until((supervised.folder / "port").exists)
    port = wait_until(lambda: supervised.said("port"))
    assert get(port, "/livez").status_code == 200
    assert get(port, "/readyz").status_code == 503
    early = get(port, "/v1/models")
    assert early.status_code == 503
    assert early.headers["retry-after"] == "1"
    assert early.json()["error"]["code"] == "engine_unavailable"
    (supervised.folder / "go").touch()
    supervised.wait_ready()
    assert get(port, "/readyz").status_code == 200
    assert get(port, "/v1/models").json()["data"][0]["id"] == "m"


@pytest.mark.real_model
def test_a_running_stream_is_finished_before_it_stops(start: Start, smollm2_path: Path) -> None:
    supervised = start("good", "real", model=str(smollm2_path))
    supervised.wait_ready()
    port = int(supervised.said("port"))
    body = {"model": "m", "prompt": "Hi", "max_tokens": 20, "stream": True}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    with (
        httpx.Client(headers=headers, timeout=DEADLINE_S) as client,
        client.stream("POST", url, json=body) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        supervised.ask_stop()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert supervised.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.real_model
def test_what_takes_too_long_to_finish_ends_with_an_error(start: Start, smollm2_path: Path) -> None:
    supervised = start("good", "real", model=str(smollm2_path))
    supervised.wait_ready()
    port = supervised.said("port")
    body = {"model": "m", "prompt": "Hi", "max_tokens": 1000, "stream": True}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:
        client.headers.update(headers)
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            supervised.ask_stop()
            wait_until(lambda: get(port, "/readyz").status_code == 503)
            assert get(port, "/livez").status_code == 200
            refused = get(port, "/v1/models")
            rest = list(lines)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "engine_unavailable"
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_unavailable" and "shutting down" in error["message"]
    assert supervised.wait() == 0


@pytest.mark.real_model
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stream_outlives_its_engine(
    start: Start, smollm2_path: Path, how: signal.Signals
) -> None:
    supervised = start("good", "real", model=str(smollm2_path), workers=2)
    supervised.wait_ready()
    port = supervised.said("port")
    body = {"model": "m", "prompt": "Hi", "max_tokens": 100, "stream": True}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    with httpx.Client(headers=headers, timeout=DEADLINE_S) as client:
        whole = client.post(url, json={**body, "stream": False}).json()
        with client.stream("POST", url, json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            said = [next(lines) for _ in range(5)]
            os.kill(supervised.pid("engine"), how)
            said += lines
    assert said.pop() == "data: [DONE]"
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in said]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert choices[-1]["finish_reason"] == "length"
    wait_until(lambda: len(supervised.pids("engine")) == 2)
    wait_until(lambda: get(port, "/readyz").status_code == 200)
    with httpx.Client(headers=headers) as client:
        samples = parse(client.get(f"http://127.0.0.1:{port}/metrics").text)
    assert value_of(samples, "qwen_serve_resumed_requests_total") == 1
    assert value_of(samples, "qwen_serve_engine_restarts_total") == 1
    assert ("engine hangs" in supervised.said("stderr")) == (how == signal.SIGSTOP)


@pytest.mark.real_model
def test_a_request_that_ends_engines_fails_alone(start: Start, smollm2_path: Path) -> None:
    supervised = start("deadly", "real", model=str(smollm2_path))
    supervised.wait_ready()
    port = supervised.said("port")
    headers = {"Authorization": f"Bearer {API_KEY}"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    prompts = [[i + 10, 3, 4] for i in range(6)]

    def ask(prompt: list[int]) -> httpx.Response:
        body = {"model": "m", "prompt": prompt, "max_tokens": 200, "ignore_eos": True}
        return httpx.post(url, json={**body, "temperature": 0}, headers=headers, timeout=DEADLINE_S)

    with ThreadPoolExecutor(8) as pool:
        undisturbed = [response.json()["choices"] for response in pool.map(ask, prompts)]
        assert len(supervised.pids("engine")) == 1
        deadly = pool.submit(ask, [1, DEADLY, 2])
        disturbed = [response.json()["choices"] for response in pool.map(ask, prompts)]
        failed = deadly.result()
    assert disturbed == undisturbed
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert failed.headers["x-request-id"]
    assert len(supervised.pids("engine")) == 4  # it has ended three
    assert ask(prompts[0]).json()["choices"] == undisturbed[0]
