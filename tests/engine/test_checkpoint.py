"""Checkpoints as folders and as GGUF files: what is read, and what is refused with which words."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 8,
    "torch_dtype": "bfloat16",
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "eos_token_id": 5,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", CONFIG)
    write_json(tmp_path / "tokenizer.json", {"model": {}})
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_folder(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [7, 5], "top_p": 0.8})
    write_json(
        folder / "tokenizer_config.json", {"chat_template": "{{ x }}", "add_bos_token": True}
    )
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.format == "safetensors"
    assert checkpoint.config["hidden_size"] == 8
    assert checkpoint.generation_config["top_p"] == 0.8
    assert checkpoint.eos_token_ids == (7, 5)
    assert checkpoint.chat_template == "{{ x }}"
    assert checkpoint.tokenizer_json == '{"model": {}}'
    assert checkpoint.tokenizer_config["add_bos_token"] is True
    assert checkpoint.gguf_vocabulary is None


def test_folder_with_little_in_it(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.eos_token_ids == (5,)
    assert checkpoint.chat_template is None
    assert checkpoint.generation_config == {}


def test_both_spellings_of_the_config_are_one(folder: Path) -> None:
    old = Checkpoint.open(folder).config
    assert (old["dtype"], old["rope_theta"], old["rope_scaling"]) == ("bfloat16", 1000000.0, None)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    new_config = {"model_type": "llama", "dtype": "float16", "rope_parameters": rope}
    write_json(folder / "config.json", new_config)
    new = Checkpoint.open(folder).config
    assert (new["dtype"], new["rope_theta"]) == ("float16", 5000.0)
    assert new["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_chat_template_from_its_own_file_or_a_list(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_json(folder / "tokenizer_config.json", {"chat_template": named})
    assert Checkpoint.open(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert Checkpoint.open(folder).chat_template == "J"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", "[]", "does not hold a JSON object"),
        ("config.json", "{}", "has no model_type"),
        (
            "config.json",
            '{"model_type": "gpt2"}',
            "'gpt2' are not supported.*llama, mistral, qwen, qwen2",
        ),
        ("config.json", '{"model_type": "llama", "rope_parameters": 1}', "is not an object"),
        ("config.json", '{"model_type": "llama", "eos_token_id": "x"}', "eos_token_id 'x'"),
        ("config.json", "\udcff", "not UTF-8"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "neither .safetensors nor"),
        ("generation_config.json", "{", "generation_config.json is not valid JSON"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is neither"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "chat_template is neither"),
    ],
)
def test_broken_folders(folder: Path, name: str, content: str | None, problem: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.open(folder)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no model at"):
        Checkpoint.open(tmp_path / "absent")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"neither a folder nor a \.gguf file"):
        Checkpoint.open(tmp_path / "model.bin")


def write_gguf(
    path: Path, *, arch: str = "llama", without: str = "", replace: dict[str, Any] | None = None
) -> Path:
    """A small GGUF file; `without` leaves one key out, `replace` changes values (integers)."""
    writer = gguf.GGUFWriter(path, arch)
    sizes = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    for key, value in sizes.items():
        if key != without:
            writer.add_uint32(f"{arch}.{key}", (replace or {}).get(key, value))
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = ["a", "b", "<|im_end|>", "<|endoftext|>", "</s>", "<|im_start|>"]
    if without != "tokens":
        writer.add_token_list(tokens)
    writer.add_token_types((replace or {}).get("types", [1, 1, 3, 3, 1, 3]))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    writer.add_bos_token_id(99)  # beyond the vocabulary: means none
    writer.add_chat_template("{{ messages }}")
    if without != "token_embd.weight":
        writer.add_tensor("token_embd.weight", np.zeros((6, 32), dtype=np.float32))
    if (replace or {}).get("rope_freqs"):
        writer.add_tensor("rope_freqs.weight", np.array([1, 2, 4, 8], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_gguf(tmp_path / "m.gguf"))
    assert checkpoint.format == "gguf"
    assert checkpoint.eos_token_ids == (3, 2)  # declared first; "</s>" is no control token here
    assert checkpoint.chat_template == "{{ messages }}"
    assert checkpoint.config["rms_norm_eps"] == pytest.approx(1e-5)
    vocabulary = checkpoint.gguf_vocabulary
    assert vocabulary is not None
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "qwen2")
    assert vocabulary.merges == ["a b"]
    assert (vocabulary.eos_token_id, vocabulary.bos_token_id) == (3, None)
    assert vocabulary.add_bos_token is False


def test_gguf_llama3_scaling_is_a_tensor(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", replace={"rope_freqs": True})
    assert Checkpoint.open(path).config["rope_scaling"] == {
        "rope_type": "factors",
        "factors": [1.0, 2.0, 4.0, 8.0],
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"arch": "gemma"}, "'gemma' are not supported"),
        ({"without": "block_count"}, r"no metadata key 'llama\.block_count'"),
        ({"without": "tokens"}, r"no metadata key 'tokenizer\.ggml\.tokens'"),
        ({"without": "token_embd.weight"}, r"no tensor 'token_embd\.weight'"),
        ({"replace": {"attention.head_count": 0}}, "0 attention heads"),
        ({"replace": {"types": [1, 1]}}, "6 tokens but 2 types"),
    ],
)
def test_gguf_with_bad_metadata(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.open(write_gguf(tmp_path / "m.gguf", **options))


def test_gguf_with_a_key_of_the_wrong_kind(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    at = data.index(b"llama.block_count") + len(b"llama.block_count")
    path.write_bytes(data[:at] + b"\x06" + data[at + 1 :])  # the same four bytes as a float
    with pytest.raises(CheckpointError, match=r"'llama\.block_count' is not an integer"):
        Checkpoint.open(path)


@pytest.mark.real_model
def test_real_models(smollm2_path: Path, qwen_coder_path: Path) -> None:
    smollm2, qwen = Checkpoint.open(smollm2_path), Checkpoint.open(qwen_coder_path)
    # HuggingFaceTB/SmolLM2-135M-Instruct and Qwen/Qwen2.5-Coder-0.5B-Instruct, config.json
    published = {"hidden_size": 576, "num_hidden_layers": 30, "num_key_value_heads": 3}
    assert smollm2.config | published == smollm2.config
    assert (smollm2.config["head_dim"], smollm2.config["tie_word_embeddings"]) == (64, True)
    assert (qwen.config["vocab_size"], qwen.config["rope_theta"]) == (151936, 1e6)
    assert qwen.config["rms_norm_eps"] == pytest.approx(1e-6)
    assert (qwen.config["tie_word_embeddings"], qwen.config["attention_bias"]) == (False, True)
    assert smollm2.eos_token_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert qwen.eos_token_ids == (151645, 151643)  # as in its generation_config.json


def test_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import engine.checkpoint"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_part_of_a_split_gguf_model_is_refused(tmp_path: Path) -> None:
    """Parts after the first have nothing but split.* keys (gguf-split of llama.cpp)."""
    path = tmp_path / "m-00002-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="split into several"):
        Checkpoint.open(path)
