"""What --speculation and --draft-model make of an engine, and which draft models are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import Engine
from engine.errors import CheckpointError, ConfigError
from engine.load import load_engine
from engine.messages import EngineRequest, SamplingParams
from engine.speculation.ends import Ends
from engine.speculation.load import SpeculationLoader
from engine.speculation.speculator import Speculator
from tests.engine import tiny_models
from tests.server.small_app import byte_tokenizer_json

CPU = torch.device("cpu")
VOCAB_SIZE = 290


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "target")


def write(folder: Path, tokenizer: str | None = None, **options: Any) -> Path:
    model = tiny_models.build("qwen2", **{"vocab_size": VOCAB_SIZE, **options})
    tiny_models.write(model, folder)
    (folder / "tokenizer.json").write_text(tokenizer or byte_tokenizer_json())
    return folder


def make(folder: Path, *, is_exact: bool = True, **options: Any) -> Speculator | None:
    backend = ReferenceBackend()
    config = EngineConfig(model=str(folder), dtype="float32", **options)
    loader = SpeculationLoader(config, Checkpoint.open(folder), CPU)
    loader.load_weights(backend)
    return loader.speculator(backend, Ends((), 99), num_blocks=20, is_exact=is_exact)


@pytest.mark.parametrize(
    ("speculation", "is_exact", "is_on"),
    [("auto", True, True), ("auto", False, False), ("ngram", False, True), ("off", True, False)],
)
def test_auto_is_on_where_logits_are_exact(
    folder: Path, speculation: str, is_exact: bool, is_on: bool
) -> None:
    assert (make(folder, is_exact=is_exact, speculation=speculation) is not None) == is_on


def load(folder: Path, **options: Any) -> Engine:
    return load_engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            kv_cache_memory_bytes=1 << 20,
            **options,
        )
    )


def output(engine: Engine) -> list[int]:
    sampling = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    engine.add(EngineRequest(id="a", prompt_token_ids=[65, 66, 67, 65, 66], sampling=sampling))
    token_ids: list[int] = []
    while engine.has_work:
        for event in engine.step():
            token_ids += getattr(event, "token_ids", [])
    engine.close()
    return token_ids


def test_engines_with_lookups_and_with_a_draft_model(folder: Path, tmp_path: Path) -> None:
    draft = write(tmp_path / "draft", num_hidden_layers=1, vocab_size=320)
    off = load(folder, speculation="off")
    expected = output(off)
    assert off.stats().num_draft_tokens == 0
    assert output(load(folder, speculation="ngram", num_speculative_tokens=3)) == expected
    with_draft = load(folder, draft_model=str(draft))
    assert with_draft.info.num_blocks < off.info.num_blocks  # the memory is for both caches
    assert output(with_draft) == expected


def changed_tokenizer(**changes: int) -> str:
    """The byte tokenizer with other tokens."""
    tokenizer = json.loads(byte_tokenizer_json())
    vocab = tokenizer["model"]["vocab"]
    a, b = list(vocab)[10:12]
    if "swap" in changes:
        vocab[a], vocab[b] = vocab[b], vocab[a]
    if "more" in changes:
        vocab["aaaa"] = max(t["id"] for t in tokenizer["added_tokens"]) + 1
    return json.dumps(tokenizer)


def test_a_draft_model_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    swapped = write(tmp_path / "swapped", changed_tokenizer(swap=1))
    with pytest.raises(ConfigError, match="they differ in 2 tokens, the first is token"):
        make(folder, draft_model=str(swapped))
    more = write(tmp_path / "more", changed_tokenizer(more=1))
    with pytest.raises(ConfigError, match=r"a vocabulary of \d+ tokens, and --model one of"):
        make(folder, draft_model=str(more))
    unknown = write(tmp_path / "unknown", '{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(ConfigError, match="cannot be compared with --model"):
        make(folder, draft_model=str(unknown))


def test_a_draft_model_does_not_go_with_other_options(folder: Path, tmp_path: Path) -> None:
    draft = str(write(tmp_path / "draft"))
    with pytest.raises(ConfigError, match="--speculation off"):
        make(folder, draft_model=draft, speculation="off")
    with pytest.raises(ConfigError, match="--tensor-parallel-size"):
        make(folder, draft_model=draft, tensor_parallel_size=2)
    with pytest.raises(CheckpointError, match="no model at"):
        make(folder, draft_model=str(tmp_path / "nowhere"))
