"""LibraryTokenizer: ids equal transformers' and tiktoken's; text never becomes a control token."""

import json
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from protocol.library_tokenizer import LibraryTokenizer
from tests.protocol import vocabularies
from tests.protocol.vocabularies import TEXTS

# Published with Qwen (tokenization_qwen.py, PAT_STR), and SmolLM2's two splits as one pattern.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMOLLM_PATTERN = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


@cache
def tiktoken_reference(path: Path, pattern: str) -> tiktoken.Encoding:
    """Another implementation of BPE, by rank instead of by merge list."""
    tokenizer = vocabularies.real_tokenizer(path)
    kinds = vocabularies.read_vocab(path).arguments["token_types"]
    ranks = {tokenizer.token_bytes(i): i for i, kind in enumerate(kinds) if kind == 1}
    return tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.real_model
class TestQwen:
    def test_a_long_text_stops_no_other_thread(self, qwen_coder_path: Path) -> None:
        tokenizer = vocabularies.real_tokenizer(qwen_coder_path)
        text = "a b " * 200_000  # some tenths of a second
        prompt = (part for part in [text])  # as a chat template hands it over
        with ThreadPoolExecutor(1) as pool:
            encoding = pool.submit(tokenizer.encode_parts, prompt)
            num_turns = 0
            while not encoding.done():
                time.sleep(0.001)
                num_turns += 1
        assert len(encoding.result()) == 400_001
        assert num_turns > 20  # 1 or 2 where the interpreter's lock is held

    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_equal_transformers(self, qwen_coder_path: Path, text: str) -> None:
        tokenizer = vocabularies.real_tokenizer(qwen_coder_path)
        reference = vocabularies.qwen_reference(qwen_coder_path)
        for whole in (text, f"<|im_start|>user\n{text}<|im_end|>\n<tool_call>{text}</tool_call>"):
            ids = tokenizer.encode(whole, parse_special=True)
            assert ids == reference.encode(whole, add_special_tokens=False)

    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_equal_tiktoken(self, qwen_coder_path: Path, text: str) -> None:
        reference = tiktoken_reference(qwen_coder_path, QWEN_PATTERN)
        ids = vocabularies.real_tokenizer(qwen_coder_path).encode(text, parse_special=False)
        assert ids == reference.encode_ordinary(unicodedata.normalize("NFC", text))

    def test_the_same_vocabulary_as_a_tokenizer_json(self, qwen_coder_path: Path) -> None:
        reference = vocabularies.qwen_reference(qwen_coder_path)
        tokenizer = LibraryTokenizer.from_json(reference.backend_tokenizer.to_str())
        from_gguf = vocabularies.real_tokenizer(qwen_coder_path)
        assert tokenizer.special_tokens == from_gguf.special_tokens
        for text in TEXTS:
            whole = f"<|im_start|>user\n{text}<|im_end|>\n<tool_call>{text}</tool_call>"
            ids = tokenizer.encode(whole, parse_special=True)
            assert ids == reference.encode(whole, add_special_tokens=False)
            plain = tokenizer.encode(whole, parse_special=False)
            assert not any(map(tokenizer.is_special, plain))
        for token_id in range(from_gguf.vocab_size):
            assert tokenizer.token_bytes(token_id) == from_gguf.token_bytes(token_id)

    def test_describes_itself(self, qwen_coder_path: Path) -> None:
        tokenizer = vocabularies.real_tokenizer(qwen_coder_path)
        assert tokenizer.vocab_size == 151665  # 271 more ids only pad the embedding
        assert tokenizer.token_bytes(151664) == b"<|file_sep|>"
        assert tokenizer.token_bytes(151665) == tokenizer.token_bytes(151935) == b""
        assert tokenizer.special_tokens["<|im_end|>"] == 151645
        assert "<tool_call>" not in tokenizer.special_tokens
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
        assert tokenizer.prompt_prefix == ()


@pytest.mark.real_model
class TestSmolLM2:
    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_equal_transformers(self, smollm2_path: Path, text: str) -> None:
        tokenizer = vocabularies.real_tokenizer(smollm2_path)
        reference = vocabularies.smollm_reference(smollm2_path)
        for whole in (text, f"<|im_start|>user\n{text}<|im_end|>\n<repo_name>{text}"):
            ids = tokenizer.encode(whole, parse_special=True)
            assert ids == reference.encode(whole, add_special_tokens=False)

    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_equal_tiktoken(self, smollm2_path: Path, text: str) -> None:
        reference = tiktoken_reference(smollm2_path, SMOLLM_PATTERN)
        ids = vocabularies.real_tokenizer(smollm2_path).encode(text, parse_special=False)
        assert ids == reference.encode_ordinary(text)

    def test_describes_itself(self, smollm2_path: Path) -> None:
        tokenizer = vocabularies.real_tokenizer(smollm2_path)
        assert tokenizer.vocab_size == 49152
        assert len(tokenizer.special_tokens) == 17
        assert tokenizer.is_special(1) and not tokenizer.is_special(17)
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.real_model
def test_no_special_token_comes_out_of_text(smollm2_path: Path, qwen_coder_path: Path) -> None:
    for path in (smollm2_path, qwen_coder_path):
        tokenizer = vocabularies.real_tokenizer(path)
        text = "".join(tokenizer.special_tokens)
        for attack in (text, f"{text} x {text}", text.replace("<", "<<|im_end|>")):
            ids = tokenizer.encode(attack, parse_special=False)
            assert not any(map(tokenizer.is_special, ids))
            assert tokenizer.decode(ids) == attack
        special = tokenizer.encode(text, parse_special=True)
        assert special == list(tokenizer.special_tokens.values())


@given(st.lists(st.sampled_from(["<|end|>", "</s>", "<|en", "d|>", "<tool_call>", " ", "é"])))
def test_small_vocabulary_text_stays_text(pieces: list[str]) -> None:
    tokenizer = vocabularies.small_tokenizer()
    text = "".join(pieces)
    ids = tokenizer.encode(text, parse_special=False)
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == text


@given(st.text(max_size=20), st.text(max_size=20))
def test_parsing_equals_the_library(before: str, after: str) -> None:
    text = f"{before}<|end|>{after}</s>  {before}<tool_call>{after}"
    expected = vocabularies.byte_level_small().encode(text).ids
    assert vocabularies.small_tokenizer().encode(text, parse_special=True) == expected


def test_decode_skips_special_tokens() -> None:
    tokenizer = vocabularies.small_tokenizer()
    ids = tokenizer.encode("hé<|end|>llo<tool_call>", parse_special=True)
    assert tokenizer.decode(ids) == "héllo<tool_call>"
    assert tokenizer.decode(ids, skip_special=False) == "hé<|end|>llo<tool_call>"
    assert tokenizer.decode([tokenizer.encode("ñ", parse_special=False)[0]]) == "\ufffd"


def test_ids_outside_the_vocabulary_have_no_text() -> None:
    tokenizer = vocabularies.small_tokenizer()
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""


def test_sentencepiece_bytes_and_ids() -> None:
    backend = vocabularies.llama2_like()
    tokenizer = LibraryTokenizer.from_json(backend.to_str(), {"bos_token": {"content": "<s>"}})
    for text in ("ab a", "é€ <s>ab</s>", "a 👩‍👧 <", "</s>"):
        assert tokenizer.encode(text, parse_special=True) == backend.encode(text).ids
    ids = tokenizer.encode("ab €<s>", parse_special=False)
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == " ab €<s>"
    spelled = [tokenizer.token_bytes(i) for i in tokenizer.encode("ab €", parse_special=False)]
    assert spelled == [b" ab", b" ", b"\xe2", b"\x82", b"\xac"]
    assert tokenizer.bos_token == "<s>"


def test_bos_rule_of_a_tokenizer_json() -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
        "pair": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    with_bos = vocabularies.changed(vocabularies.llama2_like(), post_processor=template)
    bos = {"bos_token": "<s>"}
    assert LibraryTokenizer.from_json(with_bos, bos).prompt_prefix == (1,)
    assert LibraryTokenizer.from_json(with_bos, bos | {"add_bos_token": False}).prompt_prefix == ()
    assert vocabularies.small_tokenizer().prompt_prefix == ()
    assert LibraryTokenizer.from_json(with_bos).encode("ab", parse_special=True)[0] != 1


def test_unigram_pieces() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)]
    pieces += [(character, -5.0) for character in "a</s>"]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    tokenizer = LibraryTokenizer.from_json(backend.to_str())
    text = "ab</s>a"
    assert tokenizer.encode(text, parse_special=True) == backend.encode(text).ids
    ids = tokenizer.encode(text, parse_special=False)
    assert 1 not in ids
    assert tokenizer.decode(ids) == " ab</s>a"


def gguf_arguments(**changes: object) -> dict[str, object]:
    tokens = ["<|end|>", "a", "b", "ab", "<t>", "[PAD5]"]
    arguments: dict[str, object] = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_types": [3, 1, 1, 1, 4, 5],
        "merges": ["a b"],
        "bos_token_id": None,
        "eos_token_id": 0,
        "add_bos_token": False,
    }
    return arguments | changes


def test_small_gguf_vocabulary() -> None:
    tokenizer = LibraryTokenizer.from_gguf(**gguf_arguments())  # type: ignore[arg-type]
    assert tokenizer.encode("ab<t>b<|end|>a", parse_special=True) == [3, 4, 2, 0, 1]
    assert (tokenizer.vocab_size, tokenizer.bos_token, tokenizer.eos_token) == (5, None, "<|end|>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "mystery-bpe"}, "mystery-bpe"),
        ({"model": "llama"}, "llama"),
        ({"token_types": [1]}, "token types"),
        ({"merges": ["a x"]}, "cannot be used"),
        ({"bos_token_id": 6}, "outside the vocabulary"),
    ],
)
def test_gguf_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LibraryTokenizer.from_gguf(**gguf_arguments(**changes))  # type: ignore[arg-type]


def test_a_whole_token_may_skip_merges_only_where_the_family_says_so() -> None:
    """llama-bpe takes a piece that is a token as a whole; never a special one."""
    special_word = {"tokens": ["end", "e", "n", "d", "dn"], "token_types": [3, 1, 1, 1, 1]}
    for pre, dn in (("llama-bpe", [4]), ("qwen2", [3, 2])):
        arguments = gguf_arguments(pre=pre, merges=[], **special_word)
        tokenizer = LibraryTokenizer.from_gguf(**arguments)  # type: ignore[arg-type]
        assert tokenizer.encode("dn", parse_special=False) == dn
        assert tokenizer.encode("end", parse_special=False) == [1, 2, 3]
        assert tokenizer.encode("end", parse_special=True) == [0]


def test_a_merge_may_not_build_a_special_token() -> None:
    vocabulary = {"tokens": ["<s>", "<", "s", ">", "<s"], "token_types": [3, 1, 1, 1, 1]}
    arguments = gguf_arguments(merges=["< s", "<s >"], **vocabulary)
    tokenizer = LibraryTokenizer.from_gguf(**arguments)  # type: ignore[arg-type]
    assert 0 not in tokenizer.encode("<s> <s>", parse_special=False)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [  # as the published patterns split; every piece is a token below
        ("llama-bpe", "12345", ["123", "45"]),
        ("gpt-2", "12345", ["12345"]),
        ("smollm", "12345", ["1", "2", "3", "4", "5"]),
        ("default", "12345", ["123", "45"]),
        ("qwen35", "aa\u0301\u0301", ["aa\u0301\u0301"]),
    ],
)
def test_split_rules(pre: str, text: str, pieces: list[str]) -> None:
    """Bytes merge inside a piece only, so a chain of merges shows where the text was cut."""
    byte_spelling = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = byte_spelling.pre_tokenize_str(unicodedata.normalize("NFC", text))[0][0]
    tokens = list(dict.fromkeys(spelled))
    merges = []
    for start in range(len(spelled)):
        for end in range(start + 2, len(spelled) + 1):
            if spelled[start:end] not in tokens:
                tokens.append(spelled[start:end])
                merges.append(f"{spelled[start : end - 1]} {spelled[end - 1]}")
    arguments = gguf_arguments(
        pre=pre, tokens=tokens, token_types=[1] * len(tokens), merges=merges, eos_token_id=None
    )
    tokenizer = LibraryTokenizer.from_gguf(**arguments)  # type: ignore[arg-type]
    ids = tokenizer.encode(text, parse_special=False)
    expected = [unicodedata.normalize("NFC", piece).encode() for piece in pieces]
    assert [tokenizer.token_bytes(i) for i in ids] == expected


def test_json_refusals() -> None:
    word_level = tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a")).to_str()
    with pytest.raises(ValueError, match="WordLevel"):
        LibraryTokenizer.from_json(word_level)
    no_decoder = vocabularies.changed(vocabularies.llama2_like(), decoder=None)
    with pytest.raises(ValueError, match="decoder"):
        LibraryTokenizer.from_json(no_decoder)
    with pytest.raises(ValueError, match="cannot be used"):
        LibraryTokenizer.from_json(
            vocabularies.changed(vocabularies.llama2_like(), normalizer={"type": 1})
        )
    with pytest.raises(ValueError, match="Expecting value"):
        LibraryTokenizer.from_json("not json")
    backend = vocabularies.byte_level_small()
    backend.add_special_tokens([AddedToken("word", single_word=True)])
    with pytest.raises(ValueError, match="single_word"):
        LibraryTokenizer.from_json(backend.to_str())


def test_a_lone_surrogate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        vocabularies.small_tokenizer().encode("a\ud800", parse_special=False)


def test_encode_from_several_threads() -> None:
    tokenizer = vocabularies.small_tokenizer()
    texts = [f"hello{i}<|end|>" * 20 for i in range(50)]

    def both(text: str) -> tuple[list[int], list[int]]:
        parsed = tokenizer.encode(text, parse_special=True)
        return parsed, tokenizer.encode(text, parse_special=False)

    expected = [both(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(both, texts)) == expected


def test_a_normal_token_outside_the_byte_alphabet_is_plain_text() -> None:
    tokens = {"tokens": ["<|end|>", "a", "你 好"], "token_types": [3, 1, 1], "merges": []}
    tokenizer = LibraryTokenizer.from_gguf(**gguf_arguments(**tokens))  # type: ignore[arg-type]
    assert tokenizer.token_bytes(2) == "你 好".encode()


def test_special_ids_that_do_not_follow_the_vocabulary() -> None:
    spec = json.loads(vocabularies.byte_level_small().to_str())
    for entry in spec["added_tokens"]:
        entry["id"] += 1000
    with pytest.raises(ValueError, match="does not fit"):
        LibraryTokenizer.from_json(json.dumps(spec))
