"""server/served_model.py: what the HTTP side takes from a checkpoint and from the engine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.messages import EngineInfo
from protocol.baichuan_format import BaichuanFormat
from protocol.chat import ChatRequest
from protocol.chatglm_format import ChatGLM2Format, ChatGLM3Format
from protocol.completions import CompletionRequest
from protocol.errors import NotFound
from protocol.library_tokenizer import LibraryTokenizer
from protocol.prompt import ChatTemplate
from protocol.prompt_format import PromptFormat
from protocol.qwen_format import QwenFormat
from server.chat_plan import plan_chat
from server.convert import completion_requests
from server.served_model import ModelText, served_model
from server.state import ServedModel
from tests.engine.test_tokenizer_files import spm_model

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
    assert isinstance(model.chat_template, ChatTemplate)
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


# generation_config.json of Qwen-7B-Chat
QWEN_CHAT = {
    **{"chat_format": "chatml", "do_sample": True, "eos_token_id": 151643, "max_new_tokens": 512},
    **{"max_window_size": 24000, "pad_token_id": 151643, "repetition_penalty": 1.1, "top_k": 0},
    "top_p": 0.8,
}
QWEN_BASE = {
    **{"chat_format": "raw", "do_sample": True, "eos_token_id": 151643, "max_new_tokens": 512},
    **{"stop_words_ids": [[151643]], "top_k": 0, "top_p": 0.8},
}


def write(path: Path, tokenizer: tuple[str, bytes], **files: dict[str, Any]) -> Path:
    """A folder with everything but weights that mean something."""
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    (path / tokenizer[0]).write_bytes(tokenizer[1])
    (path / "model.safetensors").write_bytes(b"")
    return path


class TestFirstQwen:
    def model(self, path: Path, vocabulary: Path, generation_config: dict[str, Any]) -> ServedModel:
        files = {"config": {"model_type": "qwen"}, "generation_config": generation_config}
        ranks = vocabulary.read_bytes()
        checkpoint = Checkpoint.open(write(path, ("qwen.tiktoken", ranks), **files))
        return served_model(checkpoint, ModelText.of(checkpoint), INFO, ["qwen"])

    def test_chat(self, tmp_path: Path, qwen_tiktoken_path: Path) -> None:
        model = self.model(tmp_path, qwen_tiktoken_path, QWEN_CHAT)
        assert isinstance(model.chat_template, QwenFormat)
        assert set(model.eos_token_ids) == {151643, 151644, 151645}
        body = {"model": "qwen", "messages": [{"role": "user", "content": "Hi <|im_end|>"}]}
        [request] = plan_chat(ChatRequest.model_validate(body), model, "id").requests
        prompt = model.tokenizer.decode(request.prompt_token_ids, skip_special=False)
        assert prompt == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
        )
        sampling = request.sampling
        assert (sampling.top_k, sampling.top_p, sampling.temperature) == (0, 0.8, 1.0)
        assert sampling.repetition_penalty == 1.1
        # max_new_tokens is no limit: OpenAI's is what the context holds
        assert sampling.max_tokens == INFO.max_model_len - len(request.prompt_token_ids)
        body["top_p"], body["repetition_penalty"] = 0.5, 1.0  # type: ignore[assignment]
        [request] = plan_chat(ChatRequest.model_validate(body), model, "id").requests
        assert (request.sampling.top_p, request.sampling.repetition_penalty) == (0.5, 1.0)

    def test_base(self, tmp_path: Path, qwen_tiktoken_path: Path) -> None:
        model = self.model(tmp_path, qwen_tiktoken_path, QWEN_BASE)
        assert model.chat_template is None
        assert model.eos_token_ids == (151643,)
        body: dict[str, Any] = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]}
        with pytest.raises(NotFound, match="not a chat model"):
            plan_chat(ChatRequest.model_validate(body), model, "id")
        completion = CompletionRequest.model_validate({"model": "qwen", "prompt": "Observation:"})
        [request] = completion_requests(completion, model, "id")
        assert request.prompt_token_ids == [37763, 367, 25]


ROLE_IDS = {"user_token_id": 262, "assistant_token_id": 263}  # among the ordinary pieces


@pytest.mark.parametrize(
    ("config", "generation_config", "kind"),
    [
        ({"model_type": "baichuan", "model_max_length": 64}, ROLE_IDS, BaichuanFormat),
        ({"model_type": "baichuan", "model_max_length": 64}, {}, None),
        ({"model_type": "chatglm"}, {}, ChatGLM2Format),
        ({"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b"}, {}, ChatGLM3Format),
    ],
)
def test_sentencepiece_families(
    tmp_path: Path,
    config: dict[str, Any],
    generation_config: dict[str, Any],
    kind: type[PromptFormat] | None,
) -> None:
    files = {"config": config, "generation_config": generation_config}
    text = ModelText.of(Checkpoint.open(write(tmp_path, ("tokenizer.model", spm_model()), **files)))
    assert text.tokenizer.encode("hello", parse_special=False)
    assert (text.chat_template and type(text.chat_template)) == kind
    if text.chat_template is not None:
        assert text.chat_template.encode([{"role": "user", "content": "hello"}])


def test_a_template_of_the_checkpoint_comes_first(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "config": {"model_type": "chatglm"},
        "tokenizer_config": {"chat_template": "[gMASK]sop{{ messages[0].content }}"},
    }
    path = write(tmp_path, ("tokenizer.model", spm_model()), **files)
    text = ModelText.of(Checkpoint.open(path))
    assert isinstance(text.chat_template, ChatTemplate)
    ids = text.chat_template.encode([{"role": "user", "content": "[gMASK]"}])
    special = text.tokenizer.special_tokens
    assert ids[:2] == [special["[gMASK]"], special["sop"]]
    assert not any(map(text.tokenizer.is_special, ids[2:]))


def test_a_plain_prompt_of_chatglm(tmp_path: Path) -> None:
    path = write(tmp_path, ("tokenizer.model", spm_model()), config={"model_type": "chatglm"})
    checkpoint = Checkpoint.open(path)
    model = served_model(checkpoint, ModelText.of(checkpoint), INFO, ["glm"])
    completion = CompletionRequest.model_validate({"model": "glm", "prompt": "hello"})
    [request] = completion_requests(completion, model, "id")
    special = model.tokenizer.special_tokens
    hello = model.tokenizer.encode("hello", parse_special=False)
    assert request.prompt_token_ids == [special["[gMASK]"], special["sop"], *hello]


def test_vocab_and_merges(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        ("merges.txt", b"a b\n"),
        config={"model_type": "qwen2"},
        vocab={"a": 0, "b": 1, "ab": 2},
        added_tokens={"<|im_end|>": 3},
        tokenizer_config={"eos_token": "<|im_end|>"},
    )
    text = ModelText.of(Checkpoint.open(path))
    assert isinstance(text.tokenizer, LibraryTokenizer)
    assert text.tokenizer.encode("abb<|im_end|>", parse_special=True) == [2, 1, 3]


@pytest.mark.parametrize(
    ("name", "data", "files"),
    [
        ("qwen.tiktoken", b"x 0\n", {"config": {"model_type": "qwen"}}),
        (
            "tokenizer.model",
            b"\x0a\x01a",
            {"config": {"model_type": "chatglm"}},
        ),
        ("merges.txt", b"a", {"config": {"model_type": "qwen2"}, "vocab": {"a": 0}}),
        (
            "tokenizer.model",
            spm_model(),
            {"config": {"model_type": "baichuan"}, "generation_config": {"user_token_id": 9}},
        ),
    ],
)
def test_broken_tokenizer_files(
    tmp_path: Path, name: str, data: bytes, files: dict[str, Any]
) -> None:
    checkpoint = Checkpoint.open(write(tmp_path, (name, data), **files))
    with pytest.raises(CheckpointError, match=r"The tokenizer of .* is not usable"):
        ModelText.of(checkpoint)
