"""Both real models against transformers in float32, on the same GGUF weights."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.models.decoder import Decoder
from engine.sequence import Chunk
from engine.weights import load_decoder
from tests.engine.forwarding import Forwarder
from tests.engine.gguf_reference import reference_model

pytestmark = pytest.mark.real_model
CPU = torch.device("cpu")


@cache
def decoder_of(path: Path, dtype: torch.dtype) -> Decoder:
    return load_decoder(Checkpoint.open(path), dtype, CPU, ReferenceBackend())


@pytest.fixture(params=["smollm2_path", "qwen_coder_path"])
def model_path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def prompt(path: Path, length: int, seed: int = 0) -> list[int]:
    """Random ordinary tokens: harder on the numbers than text, whose logits are peaked."""
    vocab_size = Checkpoint.open(path).config["vocab_size"]
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, min(vocab_size, 100_000), (length,), generator=generator).tolist()


def expected_logits(path: Path, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference_model(path)(torch.tensor([token_ids])).logits[0]
    return logits


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() < 1e-3
    difference = logits.log_softmax(-1) - expected.log_softmax(-1)
    # of the tokens that could matter; far below, a logprob of -30 keeps fewer digits
    likely = expected.log_softmax(-1) > -20
    assert difference[likely].abs().max() < 1e-4


@pytest.mark.parametrize("chunk_size", [48, 7])
def test_one_sequence(model_path: Path, chunk_size: int) -> None:
    token_ids = prompt(model_path, 48)
    decoder = decoder_of(model_path, torch.float32)
    logits = Forwarder(decoder).logits(token_ids, chunk_size)
    assert_close(logits, expected_logits(model_path, token_ids))


def test_a_batch_of_decodes_and_chunks(model_path: Path) -> None:
    """Every sequence gets the logits that it gets alone, whatever else is in its steps."""
    forwarder = Forwarder(decoder_of(model_path, torch.float32))
    lengths = [3, 9, 40, 23, 12]
    prompts = [prompt(model_path, n, seed=n) for n in lengths]
    sequences = [forwarder.sequence(token_ids) for token_ids in prompts]
    parts: list[list[torch.Tensor]] = [[] for _ in sequences]

    def step(sizes: list[int]) -> None:
        chunks, owners = [], []
        for i, size in enumerate(sizes):
            done = sum(len(part) for part in parts[i])
            if size:
                chunks.append(Chunk(sequences[i], done, size))
                owners.append(i)
        for i, logits in zip(owners, forwarder.step(chunks), strict=True):
            parts[i].append(logits)

    step([2, 8, 7, 0, 12])
    step([1, 1, 7, 22, 0])  # decodes beside chunks that start and that go on
    step([0, 0, 26, 1, 0])
    for i, token_ids in enumerate(prompts):
        assert_close(torch.cat(parts[i]), expected_logits(model_path, token_ids))


def test_bfloat16_agrees_on_the_likeliest_token(
    model_path: Path, record_property: Callable[[str, object], None]
) -> None:
    token_ids = prompt(model_path, 64, seed=5)
    expected = expected_logits(model_path, token_ids)
    logits = Forwarder(decoder_of(model_path, torch.bfloat16)).logits(token_ids, 64)
    agreement = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
    record_property("agreement", agreement)
    assert logits.dtype == torch.float32
    assert agreement > 0.85
