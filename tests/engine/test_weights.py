"""What loading refuses, by name, and which dtype "auto" means."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.models.decoder import Decoder
from engine.weights import computes_bfloat16, load_decoder, resolve_dtype
from tests.engine import tiny_models
from tests.engine.test_checkpoint import write_gguf

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.write(tiny_models.build("qwen2"), tmp_path)


def load(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(Checkpoint.open(path), dtype, CPU, ReferenceBackend())


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of model.safetensors; dots are written as double underscores."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, file, metadata={"format": "pt"})


def test_fused_rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    parameters = load(folder).parameters()
    attention = "model.layers.1.self_attn."
    for suffix in ("weight", "bias"):
        parts = [tensors[f"{attention}{x}_proj.{suffix}"] for x in "qkv"]
        assert torch.equal(parameters[f"layers.1.qkv.{suffix}"], torch.cat(parts))
    mlp = [tensors[f"model.layers.2.mlp.{x}_proj.weight"] for x in ("gate", "up")]
    assert torch.equal(parameters["layers.2.gate_up.weight"], torch.cat(mlp))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model__norm__weight": None}, r"lacks the tensor 'model\.norm\.weight'"),
        ({"model__extra": torch.zeros(1)}, r"unexpected tensor 'model\.extra'"),
        ({"model__norm__weight": torch.zeros(3)}, r"'model\.norm\.weight' has the shape \(3,\)"),
        ({"model__norm__weight": torch.zeros(32, dtype=torch.int8)}, "unsupported type I8"),
    ],
)
def test_bad_tensors(folder: Path, changes: dict[str, Any], problem: str) -> None:
    edit_tensors(folder, **changes)
    with pytest.raises(CheckpointError, match=problem):
        load(folder)


def test_damaged_files(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"not a valid safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("{", "not a valid index"),
        ("{}", "not a valid index"),
        (json.dumps({"weight_map": {"a": "../other.safetensors"}}), "outside its folder"),
        (json.dumps({"weight_map": {"a": "absent.safetensors"}}), "has no absent.safetensors"),
    ],
)
def test_bad_index(folder: Path, index: str, problem: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=problem):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"hidden_size": "x"}, "hidden_size = 'x'"),
        ({"hidden_size": 2**40}, "hidden_size = 1099511627776"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
        ({"rope_parameters": {"rope_type": "su", "factor": 4.0}}, "type 'su' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0}}, "factor = 0"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "truncate": 3}}, "truncate = 3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor = None"),
        ({"rope_parameters": {"rope_type": "factors", "factors": [1]}}, "not 4 positive numbers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.1}}, "partial_rotary_factor"),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"]}, "layer_types"),
        (
            {
                "layer_types": None,
                "use_sliding_window": True,
                "sliding_window": "x",
                "max_window_layers": 1,
            },
            "sliding_window = 'x'",
        ),
        ({"model_type": "qwen3"}, "head_dim = None"),
        ({"model_type": "qwen3_moe", "head_dim": 8}, "num_local_experts = None"),
        ({"model_type": "qwen", "no_bias": False}, "no_bias = False"),
        ({"model_type": "chatglm", "add_bias_linear": True}, "add_bias_linear = True"),
        ({"model_type": "baichuan", "max_position_embeddings": None}, "model_max_length = None"),
        ({"vocab_size": 97}, "has the shape"),
        ({"intermediate_size": 2**24}, "has the shape"),
    ],
)
def test_bad_configs(folder: Path, changes: dict[str, Any], problem: str) -> None:
    tiny_models.edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=problem):
        load(folder)


def test_sliding_window_only_counts_when_it_is_used(folder: Path) -> None:
    def windows() -> list[int | None]:
        config = load(folder).config
        return [config.window(layer) for layer in range(config.num_layers)]

    tiny_models.edit_config(folder, sliding_window=128, layer_types=None)
    assert windows() == [None, None, None]
    tiny_models.edit_config(folder, use_sliding_window=True, max_window_layers=3)
    assert windows() == [None, None, None]
    tiny_models.edit_config(folder, max_window_layers=2)
    assert windows() == [None, None, 128]
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    tiny_models.edit_config(folder, layer_types=types)
    assert windows() == [128, None, 128]


def test_llama_with_options_it_does_not_have(tmp_path: Path) -> None:
    folder = tiny_models.write(tiny_models.build("llama"), tmp_path)
    tiny_models.edit_config(folder, mlp_bias=True)
    with pytest.raises(CheckpointError, match="mlp_bias = True"):
        load(folder)
    tiny_models.edit_config(folder, mlp_bias=False, sliding_window=64)
    with pytest.raises(CheckpointError, match="sliding_window"):
        load(folder)


def test_gguf_types_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        load(path)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    blocks = np.zeros((1, 54), dtype=np.uint8)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.TQ1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    good = Checkpoint.open(path)
    checkpoint = Checkpoint(
        path=tmp_path / "q.gguf",
        format="gguf",
        config=good.config,
        generation_config={},
        eos_token_ids=(),
        chat_template=None,
        tokenizer_json=None,
    )
    with pytest.raises(CheckpointError, match=r"'token_embd\.weight' is of type TQ1_0"):
        load_decoder(checkpoint, torch.float32, CPU, ReferenceBackend())


def test_loading_leaves_the_number_of_threads_alone(folder: Path) -> None:
    before = torch.get_num_threads()
    load(folder)
    assert torch.get_num_threads() == before


def test_resolve_dtype(folder: Path, tmp_path: Path) -> None:
    tiny_models.edit_config(folder, dtype="float16")
    assert resolve_dtype("auto", Checkpoint.open(folder), CPU) == torch.float16
    assert resolve_dtype("bfloat16", Checkpoint.open(folder), CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'int3' is not one of"):
        resolve_dtype("int3", Checkpoint.open(folder), CPU)
    tiny_models.edit_config(folder, dtype="float64")
    with pytest.raises(ConfigError, match="The checkpoint is in float64"):
        resolve_dtype("auto", Checkpoint.open(folder), CPU)
    quantised = Checkpoint.open(write_gguf(tmp_path / "m.gguf"))
    wanted = torch.bfloat16 if computes_bfloat16(CPU) else torch.float32
    assert resolve_dtype("auto", quantised, CPU) == wanted
