"""Keeps control tokens that clients write from meeting those that the chat template writes.

Before a template runs, characters that could make a client's string part of a control token are
replaced by private-use characters that occur nowhere in the inputs; after it, they are put back
(protocol/prompt.py). One character stands for one, so the template sees strings of the same length.

What is replaced: "|" (or its fullwidth form) where control tokens have it ("<|im_end|>"), so that
not even pieces from several strings can join into one. For control tokens without it ("</s>"): the
first character, where the whole token follows, or the beginning of it and then the string's end.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

_BARS = "|｜"
_PRIVATE_USE = range(0xE100, 0xF900)


class ControlText:
    """What has to be shielded for one set of control tokens."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = sorted(special_tokens)
        bars = {bar for bar in _BARS if any(bar in token for token in tokens)}
        plain = [token for token in tokens if not bars.intersection(token)]
        alternatives = [re.escape(bar) for bar in sorted(bars)]
        for first, group in groupby(plain, key=lambda token: token[0]):
            rests = [token[1:] for token in group]
            ahead = "|".join([*map(re.escape, rests), *(_beginning_of(rest) for rest in rests)])
            alternatives.append(f"{re.escape(first)}(?={ahead})")
        self._pattern = re.compile("|".join(alternatives) or r"(?!)")
        self._characters = sorted(bars | {token[0] for token in plain})

    def shield(self, inputs: Any, template_source: str) -> "Shield":
        """A shield whose private-use characters are not in the inputs (nested JSON data).

        Raises:
            ValueError: the inputs leave no character free.
        """
        used = {c for text in _strings(inputs) if not text.isascii() for c in text}
        used.update(template_source)
        escapes = {c for text in _strings(inputs) for c in _escaped_private_use(text)}
        escapes.update(_escaped_private_use(template_source))
        free = (chr(c) for c in _PRIVATE_USE if chr(c) not in used | escapes)
        stand_ins = dict(zip(self._characters, free, strict=False))
        marker = next(free, None)
        if marker is None:
            raise ValueError("the messages use up every private-use character of Unicode")
        return Shield(self._pattern, stand_ins, marker)


class Shield:
    """The replacement for one rendering. `marker` is one more unused character, for the caller."""

    def __init__(self, pattern: re.Pattern[str], stand_ins: Mapping[str, str], marker: str) -> None:
        self.marker = marker
        self._pattern = pattern
        self._stand_ins = stand_ins

    def protect(self, value: Any) -> Any:
        """A copy of JSON data in which strings (keys too) have their control text replaced.

        Raises:
            TypeError: something that JSON does not have.
        """
        if isinstance(value, str):
            return self._pattern.sub(lambda match: self._stand_ins[match[0]], value)
        if isinstance(value, Mapping):
            return {self.protect(key): self.protect(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise TypeError(f"not JSON data: {type(value).__name__}")

    def restore(self, text: str) -> str:
        """Put the replaced characters back, also where tojson(ensure_ascii=true) escaped them."""
        for character, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, character)
            text = text.replace(json.dumps(stand_in)[1:-1], json.dumps(character)[1:-1])
        return text


def _beginning_of(rest: str) -> str:
    """Pattern for any beginning of `rest`, white space, then the end of the string."""
    pattern = ""
    for character in reversed(rest):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return rf"{pattern}\s*\Z"


_ESCAPE = re.compile(r"\\u([ef][0-9a-f]{3})", re.IGNORECASE)


def _escaped_private_use(text: str) -> Iterator[str]:
    r"""Characters that the text has as a JSON escape (\ue123)."""
    return (chr(int(match[1], 16)) for match in _ESCAPE.finditer(text))


def _strings(value: Any) -> Iterator[str]:
    """Every string in JSON data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
