"""Answers that a model which knows nothing writes under a grammar: random walks over its masks.

The vocabulary is of single bytes and the control tokens that the formats of tool calls know.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from llguidance import LLMatcher

from engine.grammar import compile_grammar, make_tokenizer
from engine.messages import Grammar
from engine.token_bytes import TokenBytes

MARKERS = ("<tool_call>", "</tool_call>", "<|assistant|>", "<|python_tag|>", "<think>", "</think>")
SPECIAL: Mapping[str, int] = {marker: 256 + i for i, marker in enumerate(MARKERS)}
EOS = 256 + len(MARKERS)
_TOKEN_BYTES = TokenBytes(
    [*(bytes([i]) for i in range(256)), *(marker.encode() for marker in MARKERS), b"<|end|>"],
    [*SPECIAL.values(), EOS],
)
TOKENIZER = make_tokenizer(_TOKEN_BYTES, EOS + 1, [EOS])

# What ends things comes often, or a walk never would.
_FAVOURED = b'"}])>\n,:'
_PLAIN = b"abgt57_ {[<`'\\0.-"


@lru_cache(maxsize=256)
def _compiled(grammar: Grammar) -> LLMatcher:
    return compile_grammar(TOKENIZER, grammar)


def _allowed(matcher: LLMatcher) -> set[int]:
    mask = matcher.compute_bitmask()
    assert not matcher.is_error(), matcher.get_error()
    return {i for i in range(EOS + 1) if mask[i // 8] >> i % 8 & 1}


def text_of(ids: Iterable[int]) -> str:
    """May end inside a character."""
    return b"".join(_TOKEN_BYTES.tokens[i] for i in ids if i != EOS).decode(errors="ignore")


def ids_of(text: str, special: Mapping[str, int]) -> list[int]:
    """The tokens of a text in which the texts of `special` are control tokens."""
    ids: list[int] = []
    while text:
        marker = next((m for m in special if text.startswith(m)), None)
        ids += [special[marker]] if marker else text[0].encode()
        text = text[len(marker or "x") :]
    return ids


def follows(grammar: Grammar, text: str, special: Mapping[str, int] = {}) -> bool:
    """Whether the text is a whole answer."""
    matcher = _compiled(grammar).deep_copy()
    for token_id in ids_of(text, special):
        if matcher.is_stopped() or token_id not in _allowed(matcher):
            return False
        matcher.consume_tokens([token_id])
    return matcher.is_stopped() or EOS in _allowed(matcher)


def walk(
    grammar: Grammar,
    rng: random.Random,
    snippets: Sequence[Sequence[int]],
    *,
    max_tokens: int = 700,
    num_free: int = 60,
) -> tuple[list[int], bool]:
    """A random answer in tokens, and whether it is whole.

    It steers into one of `snippets` at times, as far as that is allowed; after `num_free` tokens it
    looks for its end.
    """
    matcher = _compiled(grammar).deep_copy()
    output: list[int] = []
    wanted: list[int] = []
    while len(output) < max_tokens:
        if matcher.is_stopped():
            return output, True
        ids = _allowed(matcher)
        assert ids, text_of(output)
        is_late = len(output) > num_free
        if EOS in ids and not wanted and (is_late or rng.random() < 0.04):
            return output, True
        if not wanted and rng.random() < (0.03 if is_late else 0.25):
            wanted = list(rng.choice(snippets))
        if wanted and wanted[0] in ids:
            output.append(wanted.pop(0))
        else:
            wanted = []
            output.append(_choose(sorted(ids - {EOS}), rng, is_late) if ids != {EOS} else EOS)
        matcher.consume_tokens(output[-1:])
    return output, matcher.is_stopped()


def _choose(ids: Sequence[int], rng: random.Random, is_late: bool) -> int:
    weights = [
        (60 if is_late else 12) if i > 255 or i in _FAVOURED else 6 if i in _PLAIN else 0.5
        for i in ids
    ]
    return rng.choices(ids, weights)[0]
