"""A tokenizer.json that says what the vocabulary of a GGUF file says, for those who write folders.

Only byte-level BPE ("gpt2"), which is what library_tokenizer.py reads of GGUF files.
"""

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models

from protocol.pretokenizers import split_rule

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def tokenizer_json(
    *, model: str, pre: str, tokens: Sequence[str], token_types: Sequence[int], merges: list[str]
) -> str:
    """The text of the file. Raises ValueError for an unknown model or pre-tokenizer."""
    if model != "gpt2":
        raise ValueError(f"unsupported GGUF tokenizer model {model!r} (supported: 'gpt2')")
    rule = split_rule(pre)
    pairs = [merge.partition(" ") for merge in merges]
    added = {i for i, kind in enumerate(token_types) if kind in (_CONTROL, _USER_DEFINED)}
    texts = {tokens[i] for i in added}
    try:
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(left, right) for left, _, right in pairs if left + right not in texts],
            ignore_merges=rule.ignore_merges,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"the GGUF vocabulary cannot be used: {error}") from error
    tokenizer = tokenizers.Tokenizer(bpe)
    normalizer = rule.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    for i in sorted(added):
        is_control = token_types[i] == _CONTROL
        token = AddedToken(tokens[i], normalized=False, special=is_control)
        (tokenizer.add_special_tokens if is_control else tokenizer.add_tokens)([token])
    text: str = tokenizer.to_str(pretty=True)
    return text
