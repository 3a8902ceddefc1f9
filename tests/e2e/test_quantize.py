"""The command itself: `qwen-serve quantize`, and what it writes served by `qwen-serve serve`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.real_server import real_server
from tests.engine import gptq_files, quantized_models, tiny_models
from tests.server.small_app import TEMPLATE, byte_tokenizer_json

COMMAND = (str(Path(sys.executable).with_name("qwen-serve")), "quantize")
TIMEOUT_S = 120.0
SMALL = ("--device", "cpu", "--dtype", "float32", "--num-threads", "1")
NEW = ("--group-size", "32", "--num-samples", "5", "--max-length", "64", "--device", "cpu")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of bytes, a chat template, and files that are not copied."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model = tiny_models.build("qwen2", vocab_size=258, hidden_size=64, intermediate_size=96)
    tiny_models.write(model, folder, shard_size="100KB")
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text('{"eos_token_id": 256, "top_k": 5}')
    (folder / "LICENSE").write_text("free")
    (folder / ".qwen-serve.json").write_text("{}")
    return folder


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_what_it_writes_is_served(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    result = run(tiny_model, output, *NEW)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{output}\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "calibrating with 5 samples, 320 tokens"
    assert [line.partition(":")[0] for line in lines[1:]] == [f"layer {i} of 3" for i in (1, 2, 3)]
    described = {"chat_template.jinja", "generation_config.json", "LICENSE", "tokenizer.json"}
    written = {"config.json", "model.safetensors"}
    assert {path.name for path in output.iterdir()} == described | written
    assert (output / "chat_template.jinja").read_text() == TEMPLATE
    assert list(tmp_path.iterdir()) == [output]
    assert gptq_files.dequantized(output)
    with real_server(tmp_path, output, *SMALL, "--kv-cache-memory", "1MiB") as server:
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] >= 1
    assert "gptq 4 bit, group 32" in server.log.read_text()


def test_options_and_a_file_of_texts(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    output.mkdir()  # empty: it may be there
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "abc"}) + "\n" + json.dumps({"text": "0123456789"}))
    flags = ("--bits", "8", "--desc-act", "--no-sym", "--damp", "0.05", "--group-size", "-1")
    result = run(tiny_model, output, *flags, "--calibration", texts, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("calibrating with 2 samples, 13 tokens\n")
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    wanted = {"bits": 8, "desc_act": True, "sym": False, "damp_percent": 0.05, "group_size": -1}
    assert config | wanted == config


def fails(status: int, *arguments: str | Path) -> str:
    """Run; check what holds for every failure; return the error."""
    result = run(*arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == status, result.stderr
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stdout == ""
    return errors[0].removeprefix("error: ")


def test_failures_leave_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a"}\n{"messages": 3}\n')
    tiny_models.write(tiny_models.build("qwen3_moe"), tmp_path / "moe")
    quantized_models.write(tmp_path / "gptq", quantized_models.Format())
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    max(damaged.glob("*.safetensors")).unlink()
    for name in ("moe", "gptq"):
        (tmp_path / name / "tokenizer.json").write_text(byte_tokenizer_json())
    before = sorted(path.name for path in tmp_path.iterdir())
    assert "no file or folder /missing" in fails(1, "/missing", output)
    assert f"line 2 of {texts}: Invalid" in fails(1, tiny_model, output, "--calibration", texts)
    assert "--group-size 128 does not divide" in fails(1, tiny_model, output)
    assert "mixtures of experts are not supported" in fails(1, tmp_path / "moe", output)
    assert "is quantised already, by gptq" in fails(1, tmp_path / "gptq", output)
    assert "has no model-0000" in fails(1, damaged, output, *NEW)
    assert "there is no folder" in fails(1, tiny_model, tmp_path / "absent" / "small", *NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_output_that_is_there_stays_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    for output in (tmp_path, file):
        assert "exists already" in fails(1, tiny_model, output, *NEW)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--bits", "3"), "bad value 3 for bits (from --bits): it must be 4 or 8"),
        (("--group-size", "0"), "bad value 0 for group_size (from --group-size)"),
        (("--device", "tpu"), "bad value 'tpu' for device"),
    ],
)
def test_bad_options(tiny_model: Path, tmp_path: Path, flags: tuple[str, str], words: str) -> None:
    assert words in fails(2, tiny_model, tmp_path / "small", *flags)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(
    tiny_model: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(tiny_model), str(tmp_path / "small"), "--group-size", "32"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("calibrating with")
    while not any(tmp_path.iterdir()):  # its folder is made just before the child is started
        assert process.poll() is None
    os.kill(process.pid, signum)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, errors
    assert errors.endswith("error: stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []
