"""engine/token_bytes.py against the server's tokenizers, which say the same by other means."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.sentencepiece_file import read_pieces
from engine.token_bytes import read_token_bytes
from engine.tokenizer_files import (
    MergesFiles,
    SentencePieceFile,
    TiktokenFiles,
    TokenizerFiles,
    read_tokenizer_files,
)
from server.served_model import tokenizer_of
from tests.engine.test_tokenizer_files import ranks, spm_model
from tests.protocol.vocabularies import byte_level_small, llama2_like

PIECES = len(read_pieces(spm_model()))


def checkpoint_of(
    tokenizer_json: str | None = None,
    files: TokenizerFiles | None = None,
    tokenizer_config: dict[str, Any] | None = None,
) -> Checkpoint:
    return Checkpoint(
        path=Path("nowhere"),
        format="safetensors",
        config={},
        generation_config={},
        eos_token_ids=(),
        chat_template=None,
        tokenizer_json=tokenizer_json,
        tokenizer_config=tokenizer_config or {},
        tokenizer_files=files,
    )


def assert_as_the_tokenizer_has_it(checkpoint: Checkpoint) -> None:
    tokenizer = tokenizer_of(checkpoint)
    read = read_token_bytes(checkpoint)
    ids = range(tokenizer.vocab_size)
    assert read.tokens[: len(ids)] == [tokenizer.token_bytes(token_id) for token_id in ids]
    assert not any(read.tokens[len(ids) :])  # what only pads the vocabulary
    assert sorted(read.special_ids) == [i for i in ids if tokenizer.is_special(i)]


UNIGRAM = {
    "model": {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["<0x0A>", -2.0]],
    },
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
}
MERGED = {"a": 0, "Ġ": 1, "aĠ": 2}
DECLARED = {
    "3": {"content": "<|im_end|>", "special": True},
    "4": {"content": "<tool_call>", "special": False},
}


@pytest.mark.parametrize(
    "checkpoint",
    [
        checkpoint_of(byte_level_small().to_str()),
        checkpoint_of(llama2_like().to_str()),
        checkpoint_of(json.dumps(UNIGRAM)),
        checkpoint_of(files=TiktokenFiles(ranks(5), None, {"<|endoftext|>": 5})),
        checkpoint_of(files=TiktokenFiles(ranks(5), ranks(2, 7), {"<|endoftext|>": 5})),
        checkpoint_of(
            files=MergesFiles(json.dumps(MERGED), "a Ġ\n", None, 5),
            tokenizer_config={"added_tokens_decoder": DECLARED},
        ),
        checkpoint_of(
            files=MergesFiles(json.dumps(MERGED), "a Ġ\n", '{"<|im_end|>": 3, "<x>": 4}', 5),
            tokenizer_config={"eos_token": {"content": "<|im_end|>"}},
        ),
        checkpoint_of(files=MergesFiles(json.dumps(MERGED), "a Ġ\n", None, 4)),
        checkpoint_of(files=SentencePieceFile(spm_model(), PIECES, (), (265,), ())),
        checkpoint_of(files=SentencePieceFile(spm_model(), PIECES, ("[gMASK]", "sop"), (), ())),
    ],
    ids=[
        *("byte-level", "sentencepiece-bpe", "unigram", "tiktoken", "tiktoken-extra"),
        *("merges-declared", "merges-added", "merges-default", "baichuan", "chatglm"),
    ],
)
def test_bytes_and_special_ids(checkpoint: Checkpoint) -> None:
    assert_as_the_tokenizer_has_it(checkpoint)


@pytest.mark.real_model
def test_real_gguf_vocabularies(smollm2_path: Path, qwen_coder_path: Path) -> None:
    for path in (smollm2_path, qwen_coder_path):
        assert_as_the_tokenizer_has_it(Checkpoint.open(path))


def test_the_real_tiktoken_vocabulary(tmp_path: Path, qwen_tiktoken_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(qwen_tiktoken_path.read_bytes())
    files = read_tokenizer_files(tmp_path, {"model_type": "qwen"}, {}, {})
    assert_as_the_tokenizer_has_it(checkpoint_of(files=files))


@pytest.mark.parametrize(
    "tokenizer_json",
    [None, "{", '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}', '{"model": {"vocab": 3}}'],
)
def test_what_cannot_be_told(tokenizer_json: str | None) -> None:
    with pytest.raises(CheckpointError, match="bytes cannot be told"):
        read_token_bytes(checkpoint_of(tokenizer_json))
