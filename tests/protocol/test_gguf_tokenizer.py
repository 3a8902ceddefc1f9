"""protocol/gguf_tokenizer.py: the file it writes means what the vocabulary means."""

from pathlib import Path

import pytest
import tokenizers

from engine.checkpoint import Checkpoint
from protocol.gguf_tokenizer import tokenizer_json
from protocol.library_tokenizer import LibraryTokenizer
from server.served_model import tokenizer_of

TEXTS = [
    "Hello world, it's 2024!\n\n  def f(x):\n\treturn x ** 2\n",
    "你好，世界。今天天气很好 cafe\u0301 😀",
    "<|im_start|>user\nhi<|im_end|>\n",
    "   \n \t 12345 $%& naïve don't",
]


@pytest.mark.real_model
def test_real_vocabularies(smollm2_path: Path, qwen_coder_path: Path) -> None:
    for path in (smollm2_path, qwen_coder_path):
        checkpoint = Checkpoint.open(path)
        vocabulary = checkpoint.gguf_vocabulary
        assert vocabulary is not None
        ours = tokenizer_of(checkpoint)
        text = tokenizer_json(
            model=vocabulary.model,
            pre=vocabulary.pre,
            tokens=vocabulary.tokens,
            token_types=vocabulary.token_types,
            merges=vocabulary.merges,
        )
        library = tokenizers.Tokenizer.from_str(text)
        again = LibraryTokenizer.from_json(text)
        assert again.special_tokens == ours.special_tokens
        for sample in TEXTS:
            wanted = ours.encode(sample, parse_special=True)
            assert library.encode(sample, add_special_tokens=False).ids == wanted
            assert again.encode(sample, parse_special=True) == wanted
            assert again.decode(wanted, skip_special=False) == ours.decode(
                wanted, skip_special=False
            )


def test_unknown_kinds_are_refused() -> None:
    for model, pre, words in (("llama", "default", "tokenizer model"), ("gpt2", "x", "'x'")):
        with pytest.raises(ValueError, match=words):
            tokenizer_json(model=model, pre=pre, tokens=["a"], token_types=[1], merges=[])


def test_merges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        tokenizer_json(model="gpt2", pre="qwen2", tokens=["a"], token_types=[1], merges=["a b"])
