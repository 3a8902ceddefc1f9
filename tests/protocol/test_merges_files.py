"""vocab.json + merges.txt: ids equal those of transformers' Qwen2Tokenizer on the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Tokenizer

from protocol import merges_files
from protocol.library_tokenizer import LibraryTokenizer
from tests.protocol import vocabularies
from tests.protocol.vocabularies import TEXTS

# as Qwen1.5's tokenizer_config.json
CONFIG: dict[str, Any] = {
    "added_tokens_decoder": {
        str(151643 + i): {
            **{"content": token, "lstrip": False, "normalized": False, "rstrip": False},
            **{"single_word": False, "special": token != "<tool_call>"},
        }
        for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"])
    },
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "add_prefix_space": False,
    "tokenizer_class": "Qwen2Tokenizer",
}


@pytest.fixture(scope="module")
def folder(qwen_coder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an early repository, with the real vocabulary."""
    path = tmp_path_factory.mktemp("qwen")
    arguments = vocabularies.read_vocab(qwen_coder_path).arguments
    regular = {token: i for i, token in enumerate(arguments["tokens"][:151643])}
    (path / "vocab.json").write_text(json.dumps(regular))
    merges = "\n".join(["#version: 0.2", *arguments["merges"], ""])
    (path / "merges.txt").write_text(merges, encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return path


def build(folder: Path, config: dict[str, Any], added: str | None = None) -> LibraryTokenizer:
    return LibraryTokenizer.from_json(
        merges_files.tokenizer_json(
            (folder / "vocab.json").read_text(), (folder / "merges.txt").read_text(), config, added
        ),
        config,
    )


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> LibraryTokenizer:
    return build(folder, CONFIG)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return Qwen2Tokenizer.from_pretrained(folder)


@pytest.mark.real_model
class TestRealVocabulary:
    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_equal_transformers(
        self, tokenizer: LibraryTokenizer, reference: Any, text: str
    ) -> None:
        for whole in (text, f"<|im_start|>user\n{text}<|im_end|>\n<tool_call>{text}"):
            ids = tokenizer.encode(whole, parse_special=True)
            assert ids == reference.encode(whole, add_special_tokens=False)
            plain = tokenizer.encode(whole, parse_special=False)
            assert not any(map(tokenizer.is_special, plain))
            assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids)

    def test_describes_itself(self, tokenizer: LibraryTokenizer) -> None:
        assert tokenizer.vocab_size == 151647
        assert list(tokenizer.special_tokens.values()) == [151643, 151644, 151645]
        assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "<|im_end|>")

    def test_added_tokens_in_a_file_of_their_own(self, folder: Path) -> None:
        config = {k: v for k, v in CONFIG.items() if k != "added_tokens_decoder"}
        ids = {entry["content"]: int(i) for i, entry in CONFIG["added_tokens_decoder"].items()}
        tokenizer = build(folder, config, json.dumps(ids))
        assert tokenizer.special_tokens == {t: i for t, i in ids.items() if t != "<tool_call>"}
        text = "<|im_start|>x<tool_call>"
        assert tokenizer.encode(text, parse_special=True) == [151644, 87, 151646]


def write_small(path: Path, vocab: str, merges: str) -> Path:
    (path / "vocab.json").write_text(vocab)
    (path / "merges.txt").write_text(merges)
    return path


def test_nothing_said_of_added_tokens(tmp_path: Path) -> None:
    tokenizer = build(write_small(tmp_path, '{"a": 0, "b": 1, "ab": 2}', "a b"), {})
    assert tokenizer.special_tokens == {"<|endoftext|>": 3}
    assert tokenizer.encode("abba<|endoftext|>", parse_special=True) == [2, 1, 0, 3]


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("{", "", "Expecting"),
        ("[]", "", "vocab.json"),
        ('{"a": 0}', "a b c", "merges.txt: 'a b c'"),
        ('{"a": 0}', "a b", "cannot be used"),
    ],
)
def test_broken_files(tmp_path: Path, vocab: str, merges: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(write_small(tmp_path, vocab, merges), {})
