"""The benchmark runs: the same outputs with and without speculation, and speeds above nothing."""

from pathlib import Path

import msgspec
import pytest

from engine.bench_speculation import _QUESTIONS, _SAMPLING, Prompts, compare
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.load import load_engine
from engine.token_bytes import TokenBytes, read_token_bytes
from tests.engine import tiny_models
from tests.server.small_app import byte_tokenizer_json


def test_it_compares(tmp_path: Path) -> None:
    tiny_models.write(tiny_models.build("qwen2", vocab_size=290), tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer_json())
    config = EngineConfig(model=str(tmp_path), dtype="float32", speculation="ngram")
    engine = load_engine(msgspec.structs.replace(config, kv_cache_memory_bytes=1 << 22))
    assert engine.speculator is not None
    prompts = Prompts(read_token_bytes(Checkpoint.open(tmp_path)), 290).of("free", 2)
    sampling = msgspec.structs.replace(_SAMPLING["greedy"], max_tokens=30)
    found = compare(engine, engine.speculator, prompts, sampling, num_rounds=2)
    engine.close()
    assert set(found) == {"off", "on", "ratio", "accepted", "same"}
    assert found["same"] == 1 and found["off"] > 0 and found["on"] > 0


@pytest.mark.parametrize("kind", list(_QUESTIONS))
def test_questions_are_put_between_the_markers_of_a_chat(kind: str) -> None:
    tokens = [bytes([i]) for i in range(256)] + [b"<|im_start|>", b"<|im_end|>"]
    prompts = Prompts(TokenBytes(tokens, [256, 257]), 258).of(kind, 5)
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 5
    text = b"".join(tokens[i] for i in prompts[0]).decode()
    assert text.startswith("<|im_start|>user\n1. ")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert _QUESTIONS[kind][0] in text
