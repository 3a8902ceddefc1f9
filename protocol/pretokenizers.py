"""How text is cut before byte-level BPE merges, by the name a GGUF file gives (tokenizer.ggml.pre).

Owns the published split patterns; a name that is not here is refused, because a wrong split gives
wrong ids without any error. Sources: the models' own tokenizer.json files, and llama.cpp's
src/llama-vocab.cpp for what each name means.
"""

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (  # combining marks stay with their letters
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Patterns applied one after the other (each match becomes a piece), and their options."""

    patterns: tuple[str, ...]
    nfc: bool = False  # text is NFC-normalised first
    ignore_merges: bool = False  # a piece that is a token as a whole is taken without merging

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        splits: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, byte_level])


_DIGITS_THEN_GPT2 = SplitRule((_DIGIT, _GPT2))
_LLAMA3_RULE = SplitRule((_LLAMA3,), ignore_merges=True)

_RULES: dict[str, SplitRule] = {
    "qwen2": SplitRule((_QWEN2,), nfc=True),
    "qwen35": SplitRule((_QWEN35,), nfc=True),
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "smollm": _DIGITS_THEN_GPT2,
    "starcoder": _DIGITS_THEN_GPT2,
    "refact": _DIGITS_THEN_GPT2,
    "gpt-2": SplitRule((_GPT2,)),
    "phi-2": SplitRule((_GPT2,)),
    # What llama.cpp does with files whose converter did not know better.
    "default": SplitRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def split_rule(pre: str) -> SplitRule:
    """The rule of a GGUF pre-tokenizer name. Raises ValueError for a name without a known rule."""
    rule = _RULES.get(pre)
    if rule is None:
        known = ", ".join(sorted(_RULES))
        raise ValueError(f"unknown GGUF pre-tokenizer {pre!r} (known: {known})")
    return rule
