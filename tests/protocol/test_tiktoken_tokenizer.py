"""TiktokenTokenizer on the real qwen.tiktoken: the published vectors, and two other libraries."""

import base64
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from protocol.detokenizer import Detokenizer
from protocol.tiktoken_tokenizer import TiktokenTokenizer
from tests import real_models
from tests.protocol import vocabularies
from tests.protocol.vocabularies import TEXTS

NUM_REGULAR = 151_643
# tokenization_qwen.py: <|endoftext|>, <|im_start|>, <|im_end|>, <|extra_0|> ... <|extra_204|>
SPECIAL = {
    token: NUM_REGULAR + i
    for i, token in enumerate(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    )
}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def qwen() -> TiktokenTokenizer:
    return TiktokenTokenizer.from_files(
        real_models.qwen_tiktoken().read_bytes(), SPECIAL, eos_token="<|endoftext|>"
    )


@cache
def by_merges() -> tokenizers.Tokenizer:
    """The same ranks as a merge list, for the BPE of the `tokenizers` library.

    A rank file does not say which two tokens merge into one: those that its own merging ends in
    when the token itself is not yet known (the way Qwen2's merges.txt was made).
    """
    ranks: dict[bytes, int] = {}
    for line in real_models.qwen_tiktoken().read_bytes().splitlines():
        spelling, rank = line.split()
        ranks[base64.b64decode(spelling)] = int(rank)
    spelled: dict[int, str] = bytes_to_unicode()

    def spell(data: bytes) -> str:
        return "".join(spelled[byte] for byte in data)

    merges = []
    for token, token_id in ranks.items():  # in the order of the ids
        if len(token) > 1:
            left, right = _last_pair(ranks, token, token_id)
            merges.append((spell(left), spell(right)))
    backend = tokenizers.Tokenizer(
        models.BPE({spell(token): rank for token, rank in ranks.items()}, merges)
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def _last_pair(ranks: dict[bytes, int], token: bytes, max_rank: int) -> tuple[bytes, bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], max_rank), i) for i in range(len(parts) - 1)]
        rank, i = min(pairs)
        assert rank < max_rank
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


@pytest.mark.parametrize(
    ("text", "ids"),
    [  # examples of the Qwen repository (tokenization_note.md)
        ('print("<|endoftext|>")', [1350, 9639, 91, 8691, 723, 427, 91, 82598]),
        ("Observation", [37763, 367]),
        ("Observation:", [37763, 367, 25]),
        ("Observation:\n", [37763, 367, 510]),
        ("\n", [198]),
        ("", []),
    ],
)
def test_published_ids(text: str, ids: list[int]) -> None:
    assert qwen().encode(text, parse_special=False) == ids


def test_published_ids_with_special_tokens() -> None:
    parsed = qwen().encode('print("<|endoftext|>")', parse_special=True)
    assert parsed == [1350, 445, 151643, 899]
    parts: list[str | int] = ['print("<|extra_0|>")', 151643]
    assert qwen().encode_parts(parts) == [1350, 9639, 91, 15460, 62, 15, 91, 82598, 151643]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Panda", ["P", "anda"]),
        (" Panda", [" Panda"]),
        ("Pandas", ["P", "andas"]),
        (" Pandas", [" Pand", "as"]),
        ("2023", ["2", "0", "2", "3"]),
    ],
)
def test_published_pieces(text: str, pieces: list[str]) -> None:
    ids = qwen().encode(text, parse_special=False)
    assert [qwen().decode([i]) for i in ids] == pieces


def test_half_a_character() -> None:
    assert qwen().token_bytes(51461) == b" \xe6\xa0"
    assert qwen().decode([51461]) == " \ufffd"
    assert qwen().decode([51461, 117]) == " 根"
    detokenizer = Detokenizer(qwen())
    assert [detokenizer.feed([i]) for i in (51461, 117)] == [" ", "根"]


def test_describes_itself() -> None:
    tokenizer = qwen()
    assert tokenizer.vocab_size == 151_851
    assert tokenizer.special_tokens["<|im_end|>"] == 151_645
    assert tokenizer.token_bytes(151_850) == b"<|extra_204|>"
    assert tokenizer.token_bytes(151_851) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.is_special(151_643) and not tokenizer.is_special(151_642)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "<|endoftext|>")
    assert tokenizer.prompt_prefix == ()


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_another_bpe(text: str) -> None:
    assert qwen().encode(text, parse_special=False) == by_merges().encode(text).ids


@settings(max_examples=300)
@given(st.text(max_size=30))
def test_ids_of_any_text_equal_another_bpe(text: str) -> None:
    ids = qwen().encode(text, parse_special=False)
    assert ids == by_merges().encode(text).ids
    assert qwen().decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.real_model
def test_the_regular_tokens_are_those_of_qwen2(qwen_coder_path: Path) -> None:
    later = vocabularies.real_tokenizer(qwen_coder_path)
    assert all(qwen().token_bytes(i) == later.token_bytes(i) for i in range(NUM_REGULAR))
    for text in TEXTS:
        ids = qwen().encode(text, parse_special=False)
        assert ids == later.encode(text, parse_special=False)


@given(st.lists(st.sampled_from([*list(SPECIAL)[:5], "<|", "|>", "im_end", "<|im_", "x", " "])))
def test_text_never_becomes_a_control_token(pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = qwen().encode(text, parse_special=False)
    assert not any(map(qwen().is_special, ids))
    assert qwen().decode(ids) == text
    parsed = qwen().encode(text, parse_special=True)
    assert qwen().decode(parsed, skip_special=False) == text


def test_neighbouring_texts_are_one_text() -> None:
    parts: list[str | int] = ["Observ", "ation:", "\n", 151645, "e", "\u0301"]
    expected = [37763, 367, 510, 151645, *qwen().encode("é", parse_special=False)]
    assert qwen().encode_parts(parts) == expected


RANKS = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


def test_extra_tokens() -> None:
    """Ids of qwen_extra.tiktoken come after the special tokens (examples/add_merges.py)."""
    extra = b"\n" + base64.b64encode(b"ab") + b" 258\n\n" + base64.b64encode(b"abc") + b" 259\n"
    special = {"<|endoftext|>": 256, "<|im_start|>": 257}
    tokenizer = TiktokenTokenizer.from_files(RANKS, special, extra_ranks=extra)
    assert tokenizer.encode("xabc<|im_start|>", parse_special=True) == [120, 259, 257]
    assert tokenizer.token_bytes(258) == b"ab"
    assert (tokenizer.vocab_size, tokenizer.eos_token) == (260, None)


@pytest.mark.parametrize(
    ("ranks", "special", "message"),
    [
        (b"", {}, "no tokens"),
        (RANKS + b"YWI=\n", {}, "line 257"),
        (RANKS + b"YWI= x\n", {}, "line 257"),
        (RANKS + b"Y 256\n", {}, "line 257"),
        (RANKS + b"YWI= 255\n", {}, "the id 255"),
        (RANKS + b"YWI= -1\n", {}, "the id -1"),
        (RANKS, {"<|endoftext|>": 7}, "the id 7"),
    ],
)
def test_files_that_are_not_vocabularies(
    ranks: bytes, special: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TiktokenTokenizer.from_files(ranks, special)


def test_a_lone_surrogate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        qwen().encode("a\ud800", parse_special=False)
