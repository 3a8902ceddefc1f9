"""Tokenizers for the protocol tests: ours of the two real GGUF files, references, small ones."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from protocol.library_tokenizer import LibraryTokenizer
from protocol.tokenizer import Tokenizer

TEXTS = [
    "",
    "Hello world, I'm here; you'LL see it's 's",
    "  leading and   inner    spaces, trailing  ",
    "x = 1234567 + 89;  12 and  3\t4",
    "\n\n  3\t4\r\n\r\n \n x",
    "def f(x):\n    return x**2  # |a|b| <s> </s>\n",
    "你好，世界！今天天气很好。",
    "日本語テスト 한국어 العربية ١٢٣ Ⅷ",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 🇨🇳",
    "cafe\u0301 é \u1112\u1161\u11ab Å ½ ² ① ﬁ",
    "a\u00a0b\u3000c\u200b\ufeff",
    "https://x.y/z?q=1&r=2#t 100,000.00 -----\n\n\n====",
]


@dataclass(frozen=True)
class GgufVocab:
    arguments: dict[str, Any]  # of LibraryTokenizer.from_gguf
    chat_template: str

    def tokenizer(self) -> Tokenizer:
        return LibraryTokenizer.from_gguf(**self.arguments)


@cache
def read_vocab(path: Path) -> GgufVocab:
    fields = gguf.GGUFReader(path).fields
    names = ("model", "pre", "tokens", "merges", "bos_token_id", "eos_token_id", "add_bos_token")
    values = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in names}
    values["token_types"] = fields["tokenizer.ggml.token_type"].contents()
    return GgufVocab(values, fields["tokenizer.chat_template"].contents())


@cache
def real_tokenizer(path: Path) -> Tokenizer:
    return read_vocab(path).tokenizer()


@cache
def qwen_reference(path: Path) -> Any:
    """transformers' own Qwen2 tokenizer class over the file's vocabulary."""
    vocab = read_vocab(path)
    reference = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab.arguments["tokens"])},
        merges=_merges(vocab),
        eos_token="<|im_end|>",
        bos_token="<|endoftext|>",
    )
    return _finish(reference, vocab)


@cache
def smollm_reference(path: Path) -> Any:
    """The pipeline of the published SmolLM2 tokenizer.json over the file's vocabulary."""
    vocab = read_vocab(path)
    tokens = {token: i for i, token in enumerate(vocab.arguments["tokens"])}
    backend = tokenizers.Tokenizer(models.BPE(tokens, _merges(vocab)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    reference = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    return _finish(reference, vocab)


def _merges(vocab: GgufVocab) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") for merge in vocab.arguments["merges"])
    return [(left, right) for left, right in pairs]


def _finish(reference: Any, vocab: GgufVocab) -> Any:
    types = vocab.arguments["token_types"]
    named = list(zip(vocab.arguments["tokens"], types, strict=True))
    reference.add_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in named if k == 3]
    )
    reference.add_tokens([AddedToken(t, normalized=False) for t, k in named if k == 4])
    reference.chat_template = vocab.chat_template
    return reference


def llama2_like() -> tokenizers.Tokenizer:
    """SentencePiece-style BPE with byte fallback, put together as Llama-2's tokenizer.json is."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "a"), ("▁", "<"), ("<", "s"), ("<s", ">"), ("a", "b"), ("▁a", "b")]
    pieces += [*"▁abs<>/|é", "▁a", "▁<", "<s", "ab", "▁ab"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in pieces[:3]]
    )
    return backend


def byte_level_small() -> tokenizers.Tokenizer:
    """Every byte, a few merges, two special tokens and one added token that is not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "o"), ("Ġ", "h"), ("Ã", "©")]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken("<|end|>", normalized=False), AddedToken("</s>", normalized=False, rstrip=True)]
    )
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return backend


def small_tokenizer() -> Tokenizer:
    return LibraryTokenizer.from_json(byte_level_small().to_str(), {"eos_token": "<|end|>"})


def changed(backend: tokenizers.Tokenizer, **changes: Any) -> str:
    """The tokenizer.json of `backend` with other top-level values."""
    return json.dumps({**json.loads(backend.to_str()), **changes})
