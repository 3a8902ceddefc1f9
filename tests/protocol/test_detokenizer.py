"""Detokenizer: any split of the ids gives the text of all of them, and never half a character."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.detokenizer import Detokenizer
from protocol.library_tokenizer import LibraryTokenizer
from protocol.tokenizer import Tokenizer
from tests.protocol import vocabularies
from tests.protocol.vocabularies import TEXTS

SMALL = vocabularies.small_tokenizer()
BYTE_IDS = {SMALL.token_bytes(i): i for i in range(256)}
TRICKY = [
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈🇨🇳",
    "你好，世界",
    "e\u0301\u0327 o\u0308",
    "\U0010ffff\uffff\ufeff",
    "a\x00b",
]


def byte_ids(data: bytes) -> list[int]:
    return [BYTE_IDS[bytes([byte])] for byte in data]


def feed_all(detokenizer: Detokenizer, pieces: Sequence[Sequence[int]]) -> str:
    return "".join([*map(detokenizer.feed, pieces), detokenizer.flush()])


def assert_every_split_gives(ids: list[int], text: str, tokenizer: Tokenizer) -> None:
    assert feed_all(Detokenizer(tokenizer), [[i] for i in ids]) == text
    for end in range(len(ids) + 1):
        assert feed_all(Detokenizer(tokenizer), [ids[:end], ids[end:]]) == text


@given(st.one_of(st.sampled_from(TRICKY), st.text(max_size=12)))
def test_bytes_of_any_text_at_every_offset(text: str) -> None:
    assert_every_split_gives(byte_ids(text.encode()), text, SMALL)


@given(st.binary(max_size=16))
def test_any_bytes_at_every_offset(data: bytes) -> None:
    assert_every_split_gives(byte_ids(data), data.decode("utf-8", errors="replace"), SMALL)


@given(st.text(max_size=12))
def test_every_increment_is_whole_characters_as_soon_as_they_are_complete(text: str) -> None:
    detokenizer = Detokenizer(SMALL)
    for character in text:
        *first, last = byte_ids(character.encode())
        assert "".join(detokenizer.feed([i]) for i in first) == ""
        assert detokenizer.feed([last]) == character
    assert detokenizer.flush() == ""


@pytest.mark.parametrize(
    ("data", "increments"),
    [
        (b"a\xff b", ["a", "\ufffd", " ", "b", ""]),  # never valid: told at once
        (b"\xe4\xbda", ["", "", "\ufffda", ""]),  # cut off by another character
        (b"\xf0\x9f\x91", ["", "", "", "\ufffd"]),  # cut off by the end
    ],
)
def test_invalid_bytes(data: bytes, increments: list[str]) -> None:
    detokenizer = Detokenizer(SMALL)
    got = [detokenizer.feed([i]) for i in byte_ids(data)]
    assert [*got, detokenizer.flush()] == increments


@pytest.mark.real_model
@pytest.mark.parametrize("text", [*TEXTS, *TRICKY])
def test_real_vocabularies(smollm2_path: Path, qwen_coder_path: Path, text: str) -> None:
    qwen = vocabularies.real_tokenizer(qwen_coder_path)
    for tokenizer, reference in (
        (vocabularies.real_tokenizer(smollm2_path), vocabularies.smollm_reference(smollm2_path)),
        (qwen, vocabularies.qwen_reference(qwen_coder_path)),
    ):
        ids = reference.encode(text, add_special_tokens=False)
        expected = reference.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert_every_split_gives(ids, expected, tokenizer)


def test_special_tokens_are_left_out_or_kept() -> None:
    ids = SMALL.encode("hi<|end|></s>!", parse_special=True)
    assert feed_all(Detokenizer(SMALL), [ids]) == "hi!"
    assert feed_all(Detokenizer(SMALL, skip_special=False), [ids]) == "hi<|end|></s>!"


@given(st.text(alphabet="\n \t\u3000ab", max_size=8))
def test_white_space_in_front_is_left_out(text: str) -> None:
    ids = byte_ids(text.encode())
    for end in range(len(ids) + 1):
        detokenizer = Detokenizer(SMALL, strips_start=True)
        assert feed_all(detokenizer, [ids[:end], ids[end:]]) == text.lstrip()


def test_only_a_tokenizer_that_adds_a_space_drops_it() -> None:
    ids = SMALL.encode(" a", parse_special=False)
    assert Detokenizer(SMALL, starts_text=True).feed(ids) == " a"
    llama = LibraryTokenizer.from_json(vocabularies.llama2_like().to_str())
    ids = llama.encode("ab a", parse_special=False)
    assert Detokenizer(llama).feed(ids) == " ab a"
    assert Detokenizer(llama, starts_text=True).feed(ids) == "ab a"
