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


TEXT = """def quick_sort(numbers):
    if len(numbers) <= 1:
        return numbers
    pivot = numbers[len(numbers) // 2]

The quick brown fox jumps over the lazy dog, and then it goes home to think about what it has done.
What do you call a table that has no legs? Nobody here knows the answer, so please tell us at once.
Once upon a time there was a small server that answered every question exactly once, in order.
"""


def prompt(path: Path, length: int) -> list[int]:
    """The first `length` tokens of TEXT, the longest that match rather than real BPE.

    Text from its beginning, because on random tokens float32 itself is only good for 4e-4: so far
    is Qwen2.5-Coder, transformers' or ours, from the same model in float64 (here: 4e-5).
    """
    vocabulary = Checkpoint.open(path).gguf_vocabulary
    assert vocabulary is not None
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    text = TEXT.replace(" ", "Ġ").replace("\n", "Ċ")
    token_ids: list[int] = []
    while text:
        size = next(n for n in range(12, 0, -1) if text[:n] in ids)
        token_ids.append(ids[text[:size]])
        text = text[size:]
    assert length <= len(token_ids)
    return token_ids[:length]


def expected_logits(path: Path, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference_model(path)(torch.tensor([token_ids])).logits[0]
    return logits


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() < 1e-3
    assert (logits.log_softmax(-1) - expected.log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("chunk_size", [48, 7])
def test_one_sequence(model_path: Path, chunk_size: int) -> None:
    token_ids = prompt(model_path, 48)
    decoder = decoder_of(model_path, torch.float32)
    logits = Forwarder(decoder).logits(token_ids, chunk_size)
    assert_close(logits, expected_logits(model_path, token_ids))


def test_a_batch_of_decodes_and_chunks(model_path: Path) -> None:
    """Every sequence gets the logits that it gets alone, whatever else is in its steps."""
    forwarder = Forwarder(decoder_of(model_path, torch.float32))
    lengths = [3, 9, 31, 23, 12]
    prompts = [prompt(model_path, n) for n in lengths]
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
    step([0, 0, 17, 1, 0])
    for i, token_ids in enumerate(prompts):
        assert_close(torch.cat(parts[i]), expected_logits(model_path, token_ids))


def test_bfloat16_agrees_on_the_likeliest_token(
    model_path: Path, record_property: Callable[[str, object], None]
) -> None:
    token_ids = prompt(model_path, 64)
    expected = expected_logits(model_path, token_ids)
    logits = Forwarder(decoder_of(model_path, torch.bfloat16)).logits(token_ids, 64)
    agreement = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
    record_property("agreement", agreement)
    assert logits.dtype == torch.float32
    assert agreement > 0.85
