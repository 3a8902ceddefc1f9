"""Tiny random models through the decoder against transformers, in every layout and option."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.sequence import Chunk
from engine.weights import load_decoder
from tests.engine import tiny_models
from tests.engine.forwarding import Forwarder

CPU = torch.device("cpu")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3_ROPE}),
    ("llama", {"rope_parameters": LINEAR_ROPE}),
    ("llama", {"attention_bias": True, "head_dim": 16, "num_key_value_heads": 1}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("llama", {"rope_parameters": YARN_ROPE}),
    ("llama", {"rope_parameters": YARN_ROPE | {"attention_factor": 1.3, "truncate": False}}),
    ("llama", {"rope_parameters": YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 1.2}}),
    # the whole sequence as one prompt, longer than the context
    ("llama", {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 100}),
    ("mistral", {"sliding_window": 24}),
    ("mistral", {"sliding_window": None, "head_dim": 16}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen2", WINDOW),
    ("qwen2", {"sliding_window": 24}),  # not used: so the released configs have it
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True, "attention_bias": True} | WINDOW),
    ("qwen2_moe", {}),
    ("qwen2_moe", {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    ("qwen2_moe", {"decoder_sparse_step": 2}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": True}),
]


def token_ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(tiny_models.VOCAB_SIZE, (length,), generator=generator).tolist()


def forwarder(folder: Path, dtype: torch.dtype = torch.float32) -> Forwarder:
    decoder = load_decoder(Checkpoint.open(folder), dtype, CPU, ReferenceBackend())
    return Forwarder(decoder)


def expected(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.parametrize(("model_type", "options"), VARIANTS)
@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
def test_logits_equal_transformers(
    tmp_path: Path, model_type: str, options: dict[str, Any], shard_size: str
) -> None:
    model = tiny_models.build(model_type, **options)
    folder = tiny_models.write(model, tmp_path, shard_size=shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == "10KB")
    ids = token_ids(150)  # long enough for every band of the llama3 scaling
    for chunk_size in (150, 7):
        logits = forwarder(folder).logits(ids, chunk_size)
        torch.testing.assert_close(logits, expected(model, ids), atol=1e-4, rtol=1e-4)


def test_sequences_of_one_step_do_not_touch_each_other(tmp_path: Path) -> None:
    model = tiny_models.build("qwen2")
    run = forwarder(tiny_models.write(model, tmp_path))
    prompts = [token_ids(n, seed=n) for n in (2, 6, 5, 33, 70, 20)]
    sequences = [run.sequence(ids) for ids in prompts]
    first = run.step([Chunk(s, 0, s.num_tokens - 1) for s in sequences[:5]])
    # decodes of very different lengths, and a prefill in the middle of them
    second = run.step(
        [Chunk(s, s.num_tokens - 1, 1) for s in sequences[:3]]
        + [Chunk(sequences[5], 0, 20)]
        + [Chunk(s, s.num_tokens - 1, 1) for s in sequences[3:5]]
    )
    last = [*second[:3], *second[4:]]
    for ids, head, tail in zip(prompts[:5], first, last, strict=True):
        torch.testing.assert_close(
            torch.cat((head, tail)), expected(model, ids), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(second[3], expected(model, prompts[5]), atol=1e-4, rtol=1e-4)


def test_a_chunk_reads_a_block_that_another_chunk_of_the_step_writes(tmp_path: Path) -> None:
    """As the prefix cache does for two requests that arrive together."""
    model = tiny_models.build("llama")
    run = forwarder(tiny_models.write(model, tmp_path))
    ids = token_ids(12)
    writer, reader = run.sequence(ids), run.sequence(ids)
    reader.block_table[:2] = writer.block_table[:2]  # its first 8 tokens
    logits = run.step([Chunk(reader, 8, 4), Chunk(writer, 0, 12)])
    wanted = expected(model, ids)
    torch.testing.assert_close(logits[1], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[0], wanted[8:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_models.build("qwen2")
    ids = token_ids(40)
    run = forwarder(tiny_models.write(model, tmp_path), dtype)
    logits, wanted = run.logits(ids, 16), expected(model, ids)
    assert run.kv_cache.tensors()[0].dtype == dtype
    assert logits.dtype == torch.float32
    error = (logits - wanted).norm() / wanted.norm()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_an_int8_cache_is_close_and_the_same_for_any_chunks(tmp_path: Path) -> None:
    """What attends is what was stored, also within the chunk that stores it."""
    model = tiny_models.build("qwen2")
    ids = token_ids(150)
    plain = forwarder(tiny_models.write(model, tmp_path))
    run = Forwarder(plain.decoder, kv_cache_dtype="int8")
    logits, wanted = run.logits(ids, 150), expected(model, ids)
    error = (logits - wanted).norm() / wanted.norm()
    assert 0.001 < error < 0.03
    torch.testing.assert_close(run.logits(ids, 7), logits, atol=1e-4, rtol=1e-4)


def test_tied_embeddings_share_memory(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tie_word_embeddings=True)
    decoder = forwarder(tiny_models.write(model, tmp_path)).decoder
    assert decoder.embedding.weight is decoder.head.weight
