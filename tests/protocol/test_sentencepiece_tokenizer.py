"""SentencePieceTokenizer: as the library itself, and text never becomes a control token."""

import io
from functools import cache

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from protocol.detokenizer import Detokenizer
from protocol.sentencepiece_tokenizer import SentencePieceTokenizer

CHATGLM = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>")
TEXTS = [
    "",
    "hello world",
    " a  b ",
    "你好，世界 👩‍👩‍👧",
    "\n\n x\ty",
    "é e\u0301 ½",
    "[Round 1]\n\n问：",
]
USER, ASSISTANT = 4, 5


@cache
def model(add_dummy_prefix: bool = True, model_type: str = "bpe") -> bytes:
    """A small model trained here, with two markers that are ordinary pieces, as Baichuan's are."""
    written = io.BytesIO()
    texts = ["hello world this is a test, hold the world", "你好 世界 今天 天气 <reserved> 106"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=written,
        model_type=model_type,
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_dummy_prefix,
        user_defined_symbols=["<x>", "<reserved_106>", "<reserved_107>"],
        minloglevel=2,
    )
    return written.getvalue()


@cache
def reference(add_dummy_prefix: bool = True, model_type: str = "bpe") -> object:
    return sentencepiece.SentencePieceProcessor(model_proto=model(add_dummy_prefix, model_type))


@cache
def ours(add_dummy_prefix: bool = True, model_type: str = "bpe") -> SentencePieceTokenizer:
    return SentencePieceTokenizer(
        model(add_dummy_prefix, model_type), appended=CHATGLM, control_ids=(USER, ASSISTANT)
    )


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("add_dummy_prefix", [True, False])
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)))
def test_as_the_library(add_dummy_prefix: bool, model_type: str, text: str) -> None:
    tokenizer = ours(add_dummy_prefix, model_type)
    library = reference(add_dummy_prefix, model_type)
    ids = tokenizer.encode(text, parse_special=False)
    assert ids == library.encode(text)  # type: ignore[attr-defined]
    whole: str = library.decode(ids)  # type: ignore[attr-defined]
    space = " " if ids and add_dummy_prefix else ""
    assert tokenizer.adds_space is add_dummy_prefix
    assert tokenizer.decode(ids) == space + whole
    for end in range(len(ids) + 1):
        detokenizer = Detokenizer(tokenizer, starts_text=True)
        got = detokenizer.feed(ids[:end]) + detokenizer.feed(ids[end:]) + detokenizer.flush()
        assert got == whole
    detokenizer = Detokenizer(tokenizer)
    increments = [detokenizer.feed([i]) for i in ids]
    assert "".join([*increments, detokenizer.flush()]) == space + whole
    assert all("\ufffd" not in piece for piece in increments) or "\ufffd" in text


def test_a_continued_text_keeps_its_space() -> None:
    tokenizer = ours()
    ids = tokenizer.encode("hello world", parse_special=False)
    first = tokenizer.encode("hello", parse_special=False)
    assert ids[: len(first)] == first
    assert Detokenizer(tokenizer).feed(ids[len(first) :]) == " world"
    detokenizer = Detokenizer(tokenizer, starts_text=True)
    assert detokenizer.feed([tokenizer.special_tokens["<s>"]]) == ""
    assert detokenizer.feed(ids) == "hello world"  # a token that shows nothing starts no text


def test_half_a_character_is_held() -> None:
    tokenizer = ours()
    ids = tokenizer.encode("龍", parse_special=False)[-3:]
    assert [tokenizer.token_bytes(i) for i in ids] == [b"\xe9", b"\xbe", b"\x8d"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.feed([i]) for i in ids] == ["", "", "龍"]


def test_special_tokens() -> None:
    tokenizer = ours()
    num_pieces = reference().vocab_size()  # type: ignore[attr-defined]
    assert tokenizer.vocab_size == num_pieces + len(CHATGLM)
    assert [tokenizer.special_tokens[t] for t in CHATGLM] == list(
        range(num_pieces, num_pieces + len(CHATGLM))
    )
    assert tokenizer.special_tokens["<reserved_106>"] == USER
    assert "<x>" not in tokenizer.special_tokens
    assert tokenizer.token_bytes(num_pieces + 1) == b"[gMASK]"
    assert all(map(tokenizer.is_special, (0, 1, 2, USER, ASSISTANT, num_pieces)))
    assert not tokenizer.is_special(3)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.prompt_prefix == ()
    prefixed = SentencePieceTokenizer(model(), appended=CHATGLM, prefix=("[gMASK]", "sop"))
    assert prefixed.prompt_prefix == (num_pieces + 1, num_pieces + 3)


@given(
    st.lists(
        st.sampled_from([*CHATGLM, "<s>", "</s>", "<reserved_106>", "<reser", "ved_107>", " "])
    )
)
def test_text_never_becomes_a_control_token(pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = ours().encode(text, parse_special=False)
    assert not any(map(ours().is_special, ids))
    assert ours().decode(ids) == (" " if text else "") + text


def test_without_the_change_the_markers_would_come_out() -> None:
    assert USER in reference().encode("<reserved_106>")  # type: ignore[attr-defined]


def test_parsing_special_tokens() -> None:
    tokenizer, num_pieces = ours(), reference().vocab_size()  # type: ignore[attr-defined]
    ids = tokenizer.encode("[gMASK]sop<|user|>\n hello", parse_special=True)
    assert ids[:3] == [num_pieces + 1, num_pieces + 3, num_pieces + 6]
    assert ids[3:] == reference().encode("\n hello")  # type: ignore[attr-defined]
    plain = tokenizer.encode("sop philosophy", parse_special=True)
    assert not any(map(tokenizer.is_special, plain))
    assert tokenizer.encode("a<reserved_106>b</s>", parse_special=True) == [
        *(*tokenizer.encode("a", parse_special=False), USER),
        *(*tokenizer.encode("b", parse_special=False), 2),
    ]


def test_what_is_not_a_model() -> None:
    for data in (b"hello", b"\x0a\x7f", b"\xff" * 12, b"\x08"):
        with pytest.raises(ValueError, match="SentencePiece model"):
            SentencePieceTokenizer(data, control_ids=(1,))
    with pytest.raises(ValueError, match="cannot be used"):
        SentencePieceTokenizer(b"hello")
    with pytest.raises(ValueError, match="not among"):
        SentencePieceTokenizer(model(), control_ids=(100_000,))
    with pytest.raises(ValueError, match="surrogate"):
        ours().encode("\ud800", parse_special=False)
