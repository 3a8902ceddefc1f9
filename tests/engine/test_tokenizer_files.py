"""Folders without tokenizer.json: which files are read, the stop tokens, how many ids are valid."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.sentencepiece_file import count_pieces
from engine.tokenizer_files import MergesFiles, SentencePieceFile, TiktokenFiles
from engine.vocabulary import num_valid_tokens

QWEN = {"model_type": "qwen", "vocab_size": 151936}
CHAT = {"chat_format": "chatml", "eos_token_id": 151643, "max_new_tokens": 512, "top_k": 0}


def folder(path: Path, config: dict[str, Any], **others: dict[str, Any]) -> Path:
    for name, value in {"config": config, **others}.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    (path / "model.safetensors").write_bytes(b"")
    return path


def ranks(count: int, start: int = 0) -> bytes:
    return b"".join(
        b"%s %d\n" % (base64.b64encode(b"t%d" % i), i) for i in range(start, start + count)
    )


def spm_model() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world"] * 9),
        model_writer=written,
        vocab_size=280,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


class TestQwen:
    def test_the_real_vocabulary(self, tmp_path: Path, qwen_tiktoken_path: Path) -> None:
        (tmp_path / "qwen.tiktoken").write_bytes(qwen_tiktoken_path.read_bytes())
        checkpoint = Checkpoint.open(folder(tmp_path, QWEN, generation_config=CHAT))
        files = checkpoint.tokenizer_files
        assert isinstance(files, TiktokenFiles)
        assert files.special_tokens["<|endoftext|>"] == 151643
        assert files.special_tokens["<|extra_204|>"] == 151850
        assert checkpoint.eos_token_ids == (151643, 151645, 151644)
        assert num_valid_tokens(checkpoint, 151936) == 151851
        assert num_valid_tokens(checkpoint, 100) == 100
        assert checkpoint.tokenizer_json is None

    @pytest.mark.parametrize(
        ("generation_config", "stops"),
        [
            ({**CHAT, "eos_token_id": 7}, (7, 10 - 3, 9, 8)),
            ({"chat_format": "raw", "stop_words_ids": [[7]], "eos_token_id": 7}, (7,)),
            ({"chat_format": "raw", "stop_words_ids": [[3], [4]]}, (3, 4, 7)),
            ({}, (7,)),
        ],
    )
    def test_stop_tokens(
        self, tmp_path: Path, generation_config: dict[str, Any], stops: tuple[int, ...]
    ) -> None:
        (tmp_path / "qwen.tiktoken").write_bytes(ranks(7) + b"\n")
        path = folder(tmp_path, QWEN, generation_config=generation_config)
        assert Checkpoint.open(path).eos_token_ids == tuple(dict.fromkeys(stops))

    def test_extra_tokens(self, tmp_path: Path) -> None:
        (tmp_path / "other.tiktoken").write_bytes(ranks(7))
        (tmp_path / "qwen_extra.tiktoken").write_bytes(ranks(5, start=7 + 208))
        checkpoint = Checkpoint.open(folder(tmp_path, QWEN))
        assert num_valid_tokens(checkpoint, 1000) == 7 + 208 + 5

    @pytest.mark.parametrize("words", [[[1, 2]], [["x"]], "x", [[]], [3], [[-1]]])
    def test_stop_words_that_cannot_be_honoured(self, tmp_path: Path, words: Any) -> None:
        (tmp_path / "qwen.tiktoken").write_bytes(ranks(7))
        path = folder(tmp_path, QWEN, generation_config={"stop_words_ids": words})
        with pytest.raises(CheckpointError, match="stop_words_ids"):
            Checkpoint.open(path)

    @pytest.mark.parametrize(
        ("files", "problem"),
        [
            ({}, "has no tokenizer.json"),
            ({"a.tiktoken": ranks(1), "b.tiktoken": ranks(1)}, "more than one tokenizer: a"),
            ({"qwen.tiktoken": b"abc"}, "are not valid"),
            ({"qwen.tiktoken": b"\n"}, "no tokens"),
        ],
    )
    def test_broken(self, tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=problem):
            Checkpoint.open(folder(tmp_path, QWEN))


class TestMerges:
    CONFIG = {"model_type": "qwen2", "vocab_size": 50}  # noqa: RUF012

    def test_files(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
        (tmp_path / "merges.txt").write_text("a b\n")
        config: dict[str, Any] = {
            "chat_template": "{{ '<|im_end|>' }}",
            "added_tokens_decoder": {
                "3": {"content": "<|endoftext|>"},
                "5": {"content": "<|im_end|>"},
            },
        }
        path = folder(tmp_path, {**self.CONFIG, "eos_token_id": 3}, tokenizer_config=config)
        checkpoint = Checkpoint.open(path)
        assert isinstance(checkpoint.tokenizer_files, MergesFiles)
        assert checkpoint.tokenizer_files.merges == "a b\n"
        assert num_valid_tokens(checkpoint, 50) == 6
        assert checkpoint.eos_token_ids == (3, 5)  # early Qwen1.5-Chat declares 3 alone
        (path / "tokenizer_config.json").unlink()
        (path / "added_tokens.json").write_text('{"<|im_end|>": 7}')
        assert num_valid_tokens(Checkpoint.open(path), 50) == 8

    def test_no_merges(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"neither merges.txt"):
            Checkpoint.open(folder(tmp_path, self.CONFIG))

    def test_only_for_families_with_these_rules(self, tmp_path: Path) -> None:
        for name in ("vocab.json", "merges.txt", "tokenizer.model", "qwen.tiktoken"):
            (tmp_path / name).write_text("{}")
        with pytest.raises(CheckpointError, match=r"has no tokenizer.json"):
            Checkpoint.open(folder(tmp_path, {"model_type": "llama"}))

    @pytest.mark.parametrize("added", [[1], {"x": {"content": 1}}, {"1": {}}])
    def test_a_broken_tokenizer_config(self, tmp_path: Path, added: Any) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        config = {"chat_template": "<|im_end|>", "added_tokens_decoder": added}
        path = folder(tmp_path, self.CONFIG, tokenizer_config=config)
        if added == {"x": {"content": 1}}:
            assert Checkpoint.open(path).eos_token_ids == ()
        else:
            with pytest.raises(CheckpointError, match="added_tokens_decoder"):
                Checkpoint.open(path)


class TestSentencePiece:
    def test_pieces_are_counted_as_the_library_counts_them(self) -> None:
        model = spm_model()
        library = sentencepiece.SentencePieceProcessor(model_proto=model)
        assert count_pieces(model) == library.vocab_size()

    @pytest.mark.parametrize("data", [b"", b"hello", b"\x0a\x7f", b"\x0a", b"\xff" * 12])
    def test_what_is_not_a_model(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(ValueError, match="SentencePiece"):
            count_pieces(data)
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(CheckpointError, match="not valid"):
            Checkpoint.open(folder(tmp_path, {"model_type": "chatglm"}))

    @pytest.mark.parametrize(
        ("name", "num_special", "stops"),
        [("THUDM/chatglm2-6b", 5, (2,)), ("THUDM/chatglm3-6b", 9, (2, 6, 8))],
    )
    def test_chatglm(
        self, tmp_path: Path, name: str, num_special: int, stops: tuple[int, ...]
    ) -> None:
        model = spm_model()
        num_pieces = count_pieces(model)
        (tmp_path / "tokenizer.model").write_bytes(model)
        config = {"model_type": "chatglm", "_name_or_path": name, "eos_token_id": 2}
        checkpoint = Checkpoint.open(folder(tmp_path, config))
        files = checkpoint.tokenizer_files
        assert isinstance(files, SentencePieceFile)
        # tokenization_chatglm.py: 64789 pieces, then [MASK] 64789 ... <|observation|> 64797
        assert files.appended_id("[gMASK]") == num_pieces + 1
        assert num_valid_tokens(checkpoint, 65024) == num_pieces + num_special
        assert checkpoint.eos_token_ids == (2, *(num_pieces + i for i in stops[1:]))

    def test_chatglm3_by_its_tokens(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(spm_model())
        added = {"added_tokens_decoder": {"64795": {"content": "<|user|>"}}}
        path = folder(tmp_path, {"model_type": "chatglm"}, tokenizer_config=added)
        files = Checkpoint.open(path).tokenizer_files
        assert isinstance(files, SentencePieceFile)
        assert files.appended[-1] == "<|observation|>"

    def test_baichuan(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(spm_model())
        generation = {"user_token_id": 195, "assistant_token_id": 196, "eos_token_id": 2}
        path = folder(tmp_path, {"model_type": "baichuan"}, generation_config=generation)
        checkpoint = Checkpoint.open(path)
        files = checkpoint.tokenizer_files
        assert isinstance(files, SentencePieceFile)
        assert (files.control_ids, files.appended) == ((195, 196), ())
        assert checkpoint.eos_token_ids == (2,)
        (path / "generation_config.json").unlink()
        files = Checkpoint.open(path).tokenizer_files
        assert isinstance(files, SentencePieceFile) and files.control_ids == ()
