"""Servers as processes: what is run for each kind, readiness, failure and the end."""

import sys
from pathlib import Path

import pytest

from loadtest.client import Endpoint
from loadtest.processes import tree
from loadtest.servers import (
    Limits,
    Recipe,
    Server,
    assignments,
    our_recipe,
    peer_recipe,
    version_of,
)
from tests.loadtest import fake_server

LIMITS = Limits(num_threads=3, max_num_seqs=7)


def peer(name: str, target: str, model: str = "m.gguf", vllm_model: str = "") -> Recipe:
    return peer_recipe(name, target, model, vllm_model, LIMITS, ("--more", "1"))


def test_a_server_is_started_named_and_ended(tmp_path: Path) -> None:
    recipe = Recipe("fake", (fake_server.program(tmp_path, "fake"),))
    with Server.start(recipe) as server:
        assert server.model == "fake"
        assert server.pid is not None
        pids = tree(server.pid)
        assert Endpoint.of(server.endpoint.url) == server.endpoint
        with Server.start(Recipe("again", url=server.endpoint.url)) as again:  # runs already
            assert (again.endpoint, again.model, again.pid) == (server.endpoint, "fake", None)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_server_that_ends_tells_why(tmp_path: Path) -> None:
    code = "print('out'); raise SystemExit('no such model')"
    with pytest.raises(RuntimeError, match=r"(?s)broken did not start:.*no such model"):
        Server.start(Recipe("broken", (sys.executable, "-c", code)))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"gone at .* names no model"):
        Server.start(Recipe("gone", url="http://127.0.0.1:9/v1"))


def test_our_command_has_the_limits() -> None:
    recipe = our_recipe("model", LIMITS, options=("--quantization", "int8"))
    assert Path(recipe.command[0]).name == "qwen-serve"
    line = " ".join(recipe.command[1:])
    assert line.startswith("serve --model model --num-threads 3 --max-model-len 4096 ")
    assert line.endswith("--max-num-seqs 7 --kv-cache-memory 1GiB --quantization int8")
    assert recipe.version().startswith("qwen-serve version ")


def test_the_commands_of_peers(tmp_path: Path) -> None:
    program = fake_server.program(tmp_path, "program")
    llama = peer("llama-server", program)
    assert " ".join(llama.command[1:]) == (
        "-m m.gguf -t 3 -tb 3 -np 7 -c 32768 --kv-unified --more 1"
    )
    vllm = peer("vllm-bf16", program, vllm_model=str(tmp_path))
    assert vllm.command[1:4] == ("-m", "vllm.entrypoints.openai.api_server", "--model")
    assert vllm.environment["OMP_NUM_THREADS"] == "3"
    assert vllm.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-2"
    other = peer("qwen-serve-old", program)
    assert other.command[:2] == (program, "serve")
    assert other.command[-2:] == ("--more", "1")
    assert peer("any", "http://box:1/v1") == Recipe("any", url="http://box:1/v1")


@pytest.mark.parametrize(
    ("name", "target", "model", "message"),
    [
        ("any", "http:/box", "m.gguf", "is not a URL"),
        ("llama-server", "/no/such/program", "m.gguf", "is not a program"),
        ("llama-server", sys.executable, "folder", "serves a .gguf file, not folder"),
        ("vllm", sys.executable, "m.gguf", "give --vllm-model"),
        ("other", sys.executable, "m.gguf", "the name must begin with"),
    ],
)
def test_peers_that_cannot_be(name: str, target: str, model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peer(name, target, model)


def test_assignments() -> None:
    assert assignments(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(ValueError, match="is not NAME=VALUE"):
            assignments([wrong])


def test_versions() -> None:
    code = "import sys; print('hello'); print(' version: 7 ', file=sys.stderr)"
    assert version_of([sys.executable, "-c", code]) == "version: 7"
    assert version_of([sys.executable, "-c", ""]) == version_of([]) == ""
