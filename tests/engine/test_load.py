"""What engine/load.py makes of the options that size and stretch the context."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import Engine
from engine.errors import ConfigError
from engine.load import load_engine, resolve_decoder_config
from engine.weights import load_decoder
from tests.engine import seed_models, tiny_models
from tests.engine.forwarding import Forwarder

TOKEN_BYTES = 2 * 3 * 2 * 8 * 4  # 3 layers of keys and values, 2 heads of 8, float32


def load(folder: Path, **options: Any) -> Engine:
    return load_engine(EngineConfig(model=str(folder), dtype="float32", device="cpu", **options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.write(tiny_models.build("qwen2"), tmp_path)


def test_auto_length_is_what_the_cache_holds(folder: Path) -> None:
    info = load(folder, max_model_len="auto", kv_cache_memory_bytes=100 * TOKEN_BYTES).info
    assert (info.num_blocks, info.max_model_len) == (6, 96)


def test_auto_length_is_at_most_the_models_own(folder: Path) -> None:
    info = load(folder, max_model_len="auto", kv_cache_memory_bytes=10_000 * TOKEN_BYTES).info
    assert info.max_model_len == 512


def test_an_int8_cache_holds_more(folder: Path) -> None:
    memory = 1600 * TOKEN_BYTES
    plain = load(folder, kv_cache_memory_bytes=memory).info
    # a byte each of 8 numbers, and a scale of four: 12 in place of 32
    int8 = load(folder, kv_cache_memory_bytes=memory, kv_cache_dtype="int8").info
    assert (plain.num_blocks, int8.num_blocks) == (100, 266)


SCALINGS = [
    ({"rope_type": "linear", "factor": 4.0}, 2048),
    ({"type": "dynamic", "factor": 2.0}, 1024),
    ({"rope_type": "yarn", "factor": 4.0}, 2048),
    ({"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 128}, 1024),
    ({"rope_type": "default", "rope_theta": 1e6}, 512),
]


@pytest.mark.parametrize(("scaling", "context"), SCALINGS)
def test_rope_scaling_equals_the_same_in_the_config(
    tmp_path: Path, scaling: dict[str, Any], context: int
) -> None:
    """The oracle is transformers with the scaling in its config."""
    model = tiny_models.build("qwen2")
    folder = tiny_models.write(model, tmp_path / "plain")
    own = {"rope_theta": 10000.0, "original_max_position_embeddings": 512}
    scaled = tiny_models.build("qwen2", rope_scaling=own | scaling)
    config = EngineConfig(model=str(folder), rope_scaling=scaling)
    checkpoint = Checkpoint.open(folder)
    decoder_config = resolve_decoder_config(config, checkpoint)
    assert decoder_config.max_position_embeddings == context
    cpu = torch.device("cpu")
    decoder = load_decoder(
        checkpoint, torch.float32, cpu, ReferenceBackend(), config=decoder_config
    )
    ids = torch.randint(tiny_models.VOCAB_SIZE, (600,)).tolist()
    with torch.no_grad():
        wanted = scaled(torch.tensor([ids])).logits[0]
        plain = model(torch.tensor([ids])).logits[0]
    logits = Forwarder(decoder).logits(ids, 100)
    assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (plain - wanted).abs().max() > 0.01 * wanted.abs().max()


def test_the_engine_serves_the_stretched_context(folder: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0}
    assert load(folder, rope_scaling=scaling).info.max_model_len == 2048
    assert load(folder, rope_scaling=scaling, max_model_len=1500).info.max_model_len == 1500


def test_dynamic_ntk_of_qwen_v1_can_be_switched_off(tmp_path: Path) -> None:
    seed_models.write_qwen_v1(tmp_path)
    config = EngineConfig(model=str(tmp_path), rope_scaling={"rope_type": "default"})
    decoder_config = resolve_decoder_config(config, Checkpoint.open(tmp_path))
    assert decoder_config.rope_theta(200) == 10000.0
    assert decoder_config.max_position_embeddings == 32


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({}, "rope_type = None is none of default, linear, dynamic, yarn"),
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type = 'longrope' is none of"),
        ({"rope_type": "linear"}, "--rope-scaling: factor = None, not a positive number"),
        ({"rope_type": "yarn", "factor": -1}, "factor = -1, not a positive number"),
        (
            {"rope_type": "yarn", "factor": 2, "beta_fats": 1},
            "beta_fats is no key of rope_type yarn",
        ),
    ],
)
def test_refused_scalings(folder: Path, scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, rope_scaling=scaling)


def test_alibi_cannot_be_stretched(tmp_path: Path) -> None:
    seed_models.write_baichuan2(tmp_path, "13b")
    with pytest.raises(ConfigError, match="the model has ALiBi"):
        load(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0})


def test_a_length_past_the_context_names_the_way_out(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--rope-scaling can stretch it"):
        load(folder, max_model_len=513)
