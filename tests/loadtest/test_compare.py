"""The comparison's command against fake servers: it starts, measures, counts, reports and ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.comparison import METRICS
from loadtest.processes import tree
from loadtest.servers import Recipe, Server
from loadtest.workloads import WORKLOADS
from tests.loadtest import fake_server
from tests.waiting import wait_until


def compare(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "m.gguf").write_bytes(b"weights")
    own = fake_server.program(folder, "qwen-serve")
    command = [sys.executable, "-m", "loadtest.compare", "--model", str(folder / "m.gguf")]
    command += ["--program", own, "--starts", "2", "--rounds", "2", *options]
    command += ["--json", str(folder / "out.json"), "--plot", str(folder / "out.png")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return loaded


def test_compares_servers_in_turns(tmp_path: Path) -> None:
    llama = fake_server.program(tmp_path, "llama-server")
    with Server.start(Recipe("up", (fake_server.program(tmp_path, "up"),))) as up:
        run = compare(
            tmp_path,
            *("--peer", f"llama-server={llama}", "--peer", f"up={up.endpoint.url}"),
            *("--options", "llama-server=--break-every 5"),
            *("--workloads", "decode-8", "prefill-512", "prefix-1000"),
        )
    assert run.returncode == 0, run.stderr
    told = report(tmp_path)
    assert [server["name"] for server in told["servers"]] == ["qwen-serve", "llama-server", "up"]
    copied = told["servers"][1]["command"][2]
    assert copied.endswith("m.gguf")
    assert copied != str(tmp_path / "m.gguf")  # or the two would share its pages
    assert list(told["workloads"]) == ["decode-8", "prefill-512", "prefix-1000"]
    runs = [one for one in told["runs"] if one["workload"] in told["workloads"]]
    names = ["qwen-serve", "llama-server", "up"]
    turned = ["llama-server", "up", "qwen-serve"]
    assert [one["server"] for one in runs] == names * 3 + turned * 3
    for one in runs:
        assert (one["num_failed"] > 0) == (one["server"] == "llama-server" and bool(one["errors"]))
        assert (one["memory"] is None) == (one["server"] == "up")
        assert one["idle_cores"] < 0.5
    decoded = [one for one in runs if one["workload"] == "decode-8" and one["server"] == "up"]
    assert [one["num_output_tokens"] for one in decoded] == [8 * 96] * 2
    assert "broke off" in run.stdout
    starts = [one for one in told["runs"] if one["workload"] == "start"]
    assert [one["server"] for one in starts] == ["qwen-serve", "llama-server"] * 2
    assert all(one["metrics"]["ready_s"] < one["metrics"]["first_token_s"] for one in starts)
    rows = {(row["workload"], row["metric"], row["server"]): row for row in told["summary"]}
    assert {metric for _, metric, _ in rows} == {metric.name for metric in METRICS}
    assert rows["decode-8", "output_tokens_per_s", "up"]["ratio"] > 0
    assert "| decode-8 | output, tokens/s (higher is better) |" in run.stdout
    assert "qwen-serve (qwen-serve version" in run.stdout
    assert ": 0 of 38 requests failed" in run.stdout


def test_ours_alone(tmp_path: Path) -> None:
    run = compare(tmp_path, "--workloads", "decode-1", "--starts", "1", "--keep-running")
    assert run.returncode == 0, run.stderr
    assert {one["server"] for one in report(tmp_path)["runs"]} == {"qwen-serve"}
    assert (tmp_path / "out.png").exists() == ("wrote" in run.stdout.splitlines()[-1])


def test_an_interrupted_comparison_ends_its_servers_and_tells_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"weights")
    own = fake_server.program(tmp_path, "qwen-serve")
    command = [sys.executable, "-m", "loadtest.compare", "--model", str(tmp_path / "m.gguf")]
    command += ["--program", own, "--peer", f"llama-server={own}", "--starts", "1"]
    command += ["--options", "llama-server=--pause-after 1"]  # answers only one request
    command += ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: (tmp_path / "out.json").exists())  # both have started
        pids = tree(process.pid)
        assert len(pids) == 3
        process.terminate()
        output, _ = process.communicate()
    assert process.returncode == 0
    assert "interrupted" in output
    assert "| start | command to ready, s (lower is better) |" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peer", "vllm"], "'vllm' is not NAME=VALUE"),
        (["--peer", "qwen-serve=x"], "a peer needs another name"),
        (["--options", "vllm=--x"], "--options for vllm, which is no server here"),
        (["--peer", "up=http://127.0.0.1:9/v1"], "up at http://127.0.0.1:9/v1 names no model"),
        (["--workloads", "no"], "invalid choice"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, options: list[str], message: str) -> None:
    run = compare(tmp_path, *options)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_every_workload_is_offered() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "loadtest.compare", "--help"], capture_output=True, text=True
    )
    assert all(workload.name in run.stdout for workload in WORKLOADS)
