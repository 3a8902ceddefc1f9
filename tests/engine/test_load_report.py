"""What the log says about a model that was loaded: numbers counted by transformers and by hand."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.cpu import CpuBackend
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.load import load_engine
from engine.load_report import (
    count_parameters,
    describe_positions,
    describe_quantization,
    phase,
    weight_bytes,
)
from engine.models.config import DecoderConfig
from engine.weights import decoder_config, load_decoder
from tests.engine import quantized_models, tiny_models
from tests.engine.quantized_models import Format


def records(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    return {record.getMessage(): record.__dict__["fields"] for record in caplog.records}


def test_a_phase_logs_seconds_and_speed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with phase("load weights") as fields:
        fields["read_bytes"] = 10**9
    logged = records(caplog)["load weights"]
    assert list(logged) == ["seconds", "read_bytes", "gigabytes_per_second"]
    assert logged["gigabytes_per_second"] > 0


def test_loading_logs_its_phases_and_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_models.build("qwen2")
    folder = tiny_models.write(model, tmp_path)
    caplog.set_level(logging.INFO)
    load_engine(EngineConfig(model=str(folder), dtype="float32", device="cpu", max_model_len=100))
    logged = records(caplog)
    num_parameters = model.num_parameters()
    weights = logged["load weights"]
    # some of the tiny matrices are filled up to whole panels of 16 rows and 32 columns
    assert 4 * num_parameters <= weights["weight_bytes"] < 1.1 * 4 * num_parameters
    assert weights["read_bytes"] == (folder / "model.safetensors").stat().st_size
    # 3 layers of keys and values, 2 heads of 8, float32
    expected = {
        "path": str(folder),
        "model_type": "qwen2",
        "num_parameters": num_parameters,
        "weight_bytes": weights["weight_bytes"],
        "quantization": "none",
        "dtype": "float32",
        "max_model_len": 100,
        "trained_context": 512,
        "rope_scaling": "none",
        "kv_bytes_per_token": 2 * 3 * 2 * 8 * 4,
        "kv_bytes_per_sequence": 2 * 3 * 2 * 8 * 4 * 112,  # in blocks of 16
    }
    loaded = logged["model loaded"]
    assert {name: loaded[name] for name in expected} == expected
    tokens = loaded["kv_cache_tokens"]
    cache = logged["allocate KV cache"]
    assert cache["kv_cache_bytes"] == tokens * expected["kv_bytes_per_token"]


@pytest.mark.parametrize("model_type", ["llama", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_parameters_are_counted_as_transformers_counts(model_type: str, is_tied: bool) -> None:
    model = tiny_models.build(model_type, tie_word_embeddings=is_tied)
    assert count_parameters(config_of(model.config.to_dict())) == model.num_parameters()


def config_of(raw: dict[str, Any]) -> DecoderConfig:
    checkpoint = Checkpoint(
        path=Path("model"),
        format="safetensors",
        config=raw | {"rope_theta": 10000.0, "rope_scaling": raw.get("rope_scaling")},
        generation_config={},
        eos_token_ids=(),
        chat_template=None,
        tokenizer_json=None,
    )
    return decoder_config(checkpoint)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (Format("gptq", act_order=True), "gptq 4 bit, group 32, act-order"),
        (Format("gptq", bits=8, group_size=-1), "gptq 8 bit, one group a row"),
        (Format("awq"), "awq 4 bit, group 32"),
    ],
)
def test_packed_checkpoints(tmp_path: Path, format: Format, text: str) -> None:
    model = quantized_models.write(tmp_path, format)
    checkpoint = Checkpoint.open(tmp_path)
    assert describe_quantization(checkpoint, None) == text
    config = decoder_config(checkpoint)
    assert count_parameters(config) == model.num_parameters(), "codes count as the weights they are"
    decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"), CpuBackend())
    assert weight_bytes(decoder) < 4 * count_parameters(config)


@pytest.mark.real_model
def test_gguf(smollm2_path: Path) -> None:
    checkpoint = Checkpoint.open(smollm2_path)
    assert describe_quantization(checkpoint, None) == "gguf Q4_1, Q8_0"
    assert describe_quantization(checkpoint, "int8") == "gguf Q4_1, Q8_0; int8 on load"
    # as https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct says: 135M, head tied
    assert count_parameters(decoder_config(checkpoint)) == 134_515_008


@pytest.mark.parametrize(
    ("scaling", "text", "context"),
    [
        (None, "none", 512),
        ({"type": "linear", "factor": 4.0}, "linear, factor 4", 512),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            "yarn, factor 4 over 128",
            128,
        ),
        ({"type": "dynamic", "factor": 2.0}, "dynamic, factor 2 over 512", 512),
    ],
)
def test_positions(scaling: dict[str, Any] | None, text: str, context: int) -> None:
    raw = tiny_models.build("qwen2").config.to_dict()
    config = config_of(raw | {"rope_scaling": scaling})
    assert describe_positions(config) == text
    assert config.trained_context == context
