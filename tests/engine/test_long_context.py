"""Sequences of 32K tokens, computed in the engine's chunks, against references in one piece."""

from pathlib import Path

import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.weights import load_decoder
from tests.engine import seed_models, tiny_models
from tests.engine.forwarding import BLOCK_SIZE, Forwarder
from tests.engine.references import qwen_v1

CHUNK = 512
LENGTH = 32_768


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    checkpoint = Checkpoint.open(folder)
    decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"), ReferenceBackend())
    with torch.inference_mode():
        return Forwarder(decoder, -(-len(ids) // BLOCK_SIZE)).logits(ids, CHUNK)


def random_ids(length: int, vocab_size: int) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()


def assert_equal(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"max_position_embeddings": LENGTH, "rope_theta": 1e6},
        {
            "max_position_embeddings": LENGTH,
            "rope_scaling": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": LENGTH // 4,
            },
        },
    ],
    ids=["plain", "yarn"],
)
def test_qwen2(tmp_path: Path, options: dict[str, object]) -> None:
    model = tiny_models.build("qwen2", **SMALL, **options)
    folder = tiny_models.write(model, tmp_path)
    ids = random_ids(LENGTH, tiny_models.VOCAB_SIZE)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    assert_equal(logits(folder, ids), wanted)


def test_qwen_v1_past_the_table_of_its_own_code(tmp_path: Path) -> None:
    """NTK and LogN live from 2048 tokens on; the hub's code ends at 32,767."""
    weights, config = seed_models.write_qwen_v1(
        tmp_path,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size=24,
        seq_length=2048,
        max_position_embeddings=65_536,
    )
    ids = random_ids(LENGTH + 1000, config["vocab_size"])
    assert_equal(logits(tmp_path, ids), qwen_v1.forward(weights, config, ids, len(ids)))
