"""`qwen-serve serve` that cannot start: one clear line, the right status, nothing left behind."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.real_server import real_server
from tests.engine import tiny_models
from tests.server.small_app import byte_tokenizer_json
from tests.waiting import wait_until

COMMAND = (str(Path(sys.executable).with_name("qwen-serve")), "serve")
TIMEOUT_S = 60.0
SMALL = ("--device", "cpu", "--dtype", "float32", "--num-threads", "1")


@dataclass(frozen=True)
class Serve:
    """Runs of the command in a folder of their own, on a port that was free."""

    folder: Path

    def fails(self, status: int, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """Run until it ends by itself; check what holds for every failure; return the error."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        return self.fails_on("127.0.0.1", port, status, *arguments, environment=environment)

    def fails_on(
        self,
        host: str,
        port: int,
        status: int,
        *arguments: str,
        environment: dict[str, str] | None = None,
    ) -> str:
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        mark = f"START_FAILURE={uuid.uuid4()}"
        name, _, value = mark.partition("=")
        settings = {"QWEN_SERVE_DATA_DIR": str(self.folder / "data"), "TMPDIR": str(temporary)}
        result = subprocess.run(
            [*COMMAND, "--host", host, "--port", str(port), *arguments],
            env={**os.environ, **settings, name: value, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.returncode == status, result.stderr
        assert len(errors) == 1, result.stderr
        assert "Traceback" not in result.stderr + result.stdout, result.stderr
        assert result.stdout == ""
        assert list(temporary.iterdir()) == []
        assert processes_with(mark) == []
        return errors[0].removeprefix("error: ")


def processes_with(mark: str) -> list[str]:
    """Processes that were started with this in their environment (on Linux)."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
        except OSError:  # it ended, or is not ours
            continue
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    return Serve(tmp_path)


def test_a_mark_finds_processes() -> None:
    mark = f"START_FAILURE={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    with subprocess.Popen(["sleep", "60"], env={**os.environ, name: value}) as process:
        if Path("/proc/self").exists():  # its environment is there a moment after the process is
            assert wait_until(lambda: processes_with(mark)) == [str(process.pid)]
        process.kill()


# 1. names and options: found before anything is started


def test_names_that_are_no_model(serve: Serve) -> None:
    error = serve.fails(1, "--model", "/missing.gguf")
    assert error.startswith("there is no file or folder /missing.gguf")
    assert "smollm2 or a hub's org/name" in error
    offline = {"HF_HUB_OFFLINE": "1"}
    error = serve.fails(1, "--model", "Qwen/Qwen3-0.6B", environment=offline)
    assert error.startswith("Qwen/Qwen3-0.6B could not be downloaded")
    assert "qwen-serve pull Qwen/Qwen3-0.6B" in error


def test_bad_options(serve: Serve) -> None:
    error = serve.fails(2, "--dtype", "int4")
    assert "'int4'" in error and "auto, bfloat16, float16, float32" in error
    assert "'none'" in serve.fails(2, "--kv-cache-memory", "none")
    assert "at least 1" in serve.fails(2, "--max-model-len", "0")
    error = serve.fails(2, environment={"QWEN_SERVE_PROT": "1"})
    assert "QWEN_SERVE_PROT" in error


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("serve.yaml", "prot: 1\n", ("unknown option prot", "serve.yaml")),
        ("serve.toml", "prot = 1\n", ("unknown option prot", "serve.toml")),
        ("serve.yaml", "port: [1, 2]\n", ("port in", "single value")),
        ("serve.yaml", "{", ("serve.yaml is not valid",)),
        ("serve.json", "{}", ("must end in .yaml, .yml or .toml",)),
    ],
)
def test_bad_configuration_files(
    serve: Serve, name: str, content: str, words: tuple[str, ...]
) -> None:
    file = serve.folder / name
    file.write_text(content)
    error = serve.fails(2, "--config", str(file))
    assert all(word in error for word in words), error


def test_addresses_that_cannot_be_listened_on(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = serve.fails_on("127.0.0.1", port, 1)
        assert error.startswith(f"port {port} on 127.0.0.1 is in use") and "--port" in error
    assert "192.0.2.1" in serve.fails_on("192.0.2.1", 0, 1)  # a documentation address: nobody's
    assert "nowhere.invalid" in serve.fails_on("nowhere.invalid", 0, 1)


# 2. damaged GGUF files


def header(num_tensors: int, num_keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


TENSOR_OF_TYPE_77 = text("t") + struct.pack("<IQIQ", 1, 32, 77, 0)
FOREIGN = text("general.architecture") + struct.pack("<I", 8) + text("mamba")
HUGE_ARRAY = text("a") + struct.pack("<IIQ", 9, 8, 2**40)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is an empty file"),
        (b"PK\x03\x04" + bytes(64), "does not begin with the letters GGUF"),
        (header(2**40, 0), "claims to have 1099511627776 tensors"),
        (header(0, 1) + HUGE_ARRAY, "claims to have 1099511627776 items"),
        (header(1, 0) + TENSOR_OF_TYPE_77 + bytes(64), "tensor 't' has the unknown type 77"),
        (header(0, 1) + FOREIGN, "type 'mamba' are not supported; supported types are: llama"),
    ],
)
def test_damaged_gguf_headers(serve: Serve, content: bytes, words: str) -> None:
    model = serve.folder / "model.gguf"
    model.write_bytes(content)
    assert words in serve.fails(1, "--model", str(model))


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(10**6, "ends in the middle of its header"), (90 * 2**20, "lies beyond the end of the file")],
)
def test_truncated_gguf(serve: Serve, smollm2_path: Path, num_bytes: int, words: str) -> None:
    model = serve.folder / "model.gguf"
    with smollm2_path.open("rb") as whole:
        model.write_bytes(whole.read(4 * 2**20))  # past the header
    os.truncate(model, num_bytes)  # the rest of a longer file is a hole
    error = serve.fails(1, "--model", str(model))
    assert str(model) in error and words in error


# 3. damaged folders


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in two or more shards, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model = tiny_models.build("llama", vocab_size=258)
    tiny_models.write(model, folder, shard_size="60KB")
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_the_undamaged_folder_is_served(tiny_model: Path, tmp_path: Path) -> None:
    with real_server(tmp_path, tiny_model, *SMALL, "--kv-cache-memory", "1MiB"):
        pass


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated_shard(folder: Path) -> None:
    os.truncate(first_shard(folder), first_shard(folder).stat().st_size // 2)


def missing_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        """One file in the place of all shards."""
        tensors: dict[str, torch.Tensor] = {}
        for shard in folder.glob("*.safetensors"):
            tensors |= load_file(shard)
            shard.unlink()
        (folder / "model.safetensors.index.json").unlink()
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def without_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def with_a_short_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


def edit_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: tiny_models.edit_config(folder, **changes)


def file_of(name: str, content: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(content))

    return damage


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_config, "has no config.json"),
        (truncated_shard, "is not a valid safetensors file"),
        (missing_shard, "has no model-00001-of-"),
        (edit_tensors(without_norm), "lacks the tensor 'model.norm.weight'"),
        (edit_tensors(with_a_short_norm), "'model.norm.weight' has the shape (31,)"),
        (edit_config(model_type="gpt2"), "type 'gpt2' are not supported; supported types are:"),
        (edit_config(quantization_config=FP8), "quantised by 'fp8' (quantization_config)"),
        (
            file_of("generation_config.json", {"eos_token_id": 999}),
            "eos_token_id 999 is outside",
        ),
        (edit_config(hidden_size=10**12), "hidden_size = 1000000000000"),
        (edit_config(dtype=["float32"]), "The checkpoint is in ['float32']"),
        (file_of("tokenizer.json", []), "tokenizer"),
        (file_of("tokenizer.json", {"model": {"type": "BPE", "vocab": 3}}), "tokenizer"),
    ],
)
def test_damaged_folders(
    serve: Serve, tiny_model: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = serve.folder / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    assert words in serve.fails(1, "--model", str(folder), "--device", "cpu")


# 4. options that do not fit the model or the machine


def test_options_that_do_not_fit_the_model(serve: Serve, tiny_model: Path) -> None:
    model = ("--model", str(tiny_model), *SMALL)
    error = serve.fails(1, *model, "--kv-cache-memory", "1KiB")
    # 2 x 3 layers x 2 heads x 8 elements x 4 bytes for each of 16 and of 512 tokens
    assert "1024 bytes" in error and "6144" in error and "196608" in error
    assert "--kv-cache-memory" in error
    error = serve.fails(1, *model, "--max-model-len", "513")
    assert "--max-model-len 513 is not within 1 to 512" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device(serve: Serve, tiny_model: Path) -> None:
    error = serve.fails(1, "--model", str(tiny_model), "--device", "cuda")
    assert error == "--device cuda was asked for, but torch finds no CUDA device."
