"""server/hub_files.py on the file lists of repositories as they are on the hubs."""

import json
from pathlib import Path

import pytest

from server.hub_files import choose_files, is_complete
from server.pull_error import PullError


def test_one_copy_of_the_weights_and_what_describes_them() -> None:
    wanted = [
        *(
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
        ),
        *("model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"),
    ]
    others = [
        *(".gitattributes", "README.md", "consolidated.safetensors", "modeling_qwen.py"),
        *("onnx/config.json", "onnx/model.onnx", "optimizer.pt", "original/model.safetensors"),
        *("pytorch_model.bin", "training_args.bin", "model-q4.gguf"),
    ]
    assert choose_files("org/name", others + wanted, None) == wanted


def test_names_of_other_writers() -> None:
    """Early GPTQ tools name the weights after the quantization."""
    paths = ["config.json", "gptq_model-4bit-128g.safetensors", "quantize_config.json"]
    assert choose_files("org/name", paths, None) == paths


def test_pickles_of_a_repository_without_safetensors() -> None:
    wanted = ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
    others = ["optimizer.bin", "tokenization_qwen.py", "training_args.bin"]
    assert choose_files("org/name", others + wanted, None) == wanted


def test_gguf_files() -> None:
    paths = ["sub/q8.gguf", "sub/q8-00001-of-00002.gguf", "config.json"]
    assert choose_files("org/name", paths, "sub/q8.gguf") == ["sub/q8.gguf"]
    with pytest.raises(PullError, match="one part of a split GGUF model"):
        choose_files("org/name", paths, "sub/q8-00001-of-00002.gguf")
    with pytest.raises(PullError, match=r"org/name has no file q4\.gguf"):
        choose_files("org/name", paths, "q4.gguf")
    with pytest.raises(PullError, match=r"as in org/name/sub/q8\.gguf"):
        choose_files("org/name", paths, None)


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a/../../evil.json"])
def test_a_list_cannot_leave_its_folder(path: str) -> None:
    with pytest.raises(PullError, match="outside the model's folder"):
        choose_files("org/name", ["model.safetensors", path], None)


def test_complete_folders(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    (tmp_path / "config.json").touch()
    assert not is_complete(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert is_complete(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for broken in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(broken)
        assert not is_complete(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert not is_complete(tmp_path)
    (tmp_path / "model-1.safetensors").touch()
    assert is_complete(tmp_path)
