"""server/served_model.py: what the HTTP side takes from a checkpoint and from the engine."""

import dataclasses
from pathlib import Path

import pytest

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.messages import EngineInfo
from server.served_model import ModelText, served_model

INFO = EngineInfo(
    max_model_len=512,
    vocab_size=49152,
    num_blocks=32,
    block_size=16,
    dtype="float32",
    device="cpu",
    backend="torch",
)
PUBLISHED_PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def checkpoint(smollm2_path: Path) -> Checkpoint:
    return Checkpoint.open(smollm2_path)


@pytest.fixture(scope="module")
def text(checkpoint: Checkpoint) -> ModelText:
    return ModelText.of(checkpoint)


@pytest.mark.real_model
def test_a_gguf_file(checkpoint: Checkpoint, text: ModelText) -> None:
    model = served_model(checkpoint, text, INFO, ["a", "b"])
    assert model.names == ("a", "b")
    assert model.max_model_len == 512
    assert model.created == int(checkpoint.path.stat().st_mtime)
    ends = [model.tokenizer.decode([i], skip_special=False) for i in model.eos_token_ids]
    assert ends == ["<|im_end|>", "<|endoftext|>"]
    assert model.chat_template is not None
    assert model.chat_template.render([{"role": "user", "content": "Hi"}]) == PUBLISHED_PROMPT
    assert model.sampling_defaults == {}


@pytest.mark.real_model
def test_only_sampling_defaults_that_are_set(checkpoint: Checkpoint, text: ModelText) -> None:
    generation_config = {
        **{"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": None},
        **{"repetition_penalty": 1.05, "bos_token_id": 1, "transformers_version": "4.37.0"},
    }
    changed = dataclasses.replace(checkpoint, generation_config=generation_config)
    assert served_model(changed, text, INFO, ["m"]).sampling_defaults == {
        **{"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        **{"repetition_penalty": 1.05},
    }


@pytest.mark.real_model
def test_a_base_model_has_no_chat_template(checkpoint: Checkpoint) -> None:
    assert ModelText.of(dataclasses.replace(checkpoint, chat_template=None)).chat_template is None


@pytest.mark.real_model
def test_a_chat_template_that_is_broken(checkpoint: Checkpoint) -> None:
    broken = dataclasses.replace(checkpoint, chat_template="{% for %}")
    with pytest.raises(CheckpointError, match="chat template") as caught:
        ModelText.of(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokenizer_json", [None, "{", '{"model": {"type": "WordPiece"}}', "{}"])
def test_a_tokenizer_that_is_missing_or_broken(tmp_path: Path, tokenizer_json: str | None) -> None:
    checkpoint = Checkpoint(
        path=tmp_path,
        format="safetensors",
        config={},
        generation_config={},
        eos_token_ids=(),
        chat_template=None,
        tokenizer_json=tokenizer_json,
    )
    with pytest.raises(CheckpointError, match="tokenizer"):
        ModelText.of(checkpoint)
