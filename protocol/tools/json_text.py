"""A JSON value in a text that is still coming: where it ends, and as strict JSON.

Models that no grammar guides also write Python's quotes and literals, line breaks inside strings
and commas before a closing bracket. That is put right as it passes; JSON comes out as it went in.
"""

import json
import re
from collections.abc import Sequence

_SPACE = " \t\r\n"
_CLOSING = {"{": "}", "[": "]"}
_LITERALS = {"True": "true", "False": "false", "None": "null"}
_ESCAPED = '"\\/bfnrtu'
_PLAIN = re.compile(r"""[^"'\\\x00-\x1f]+""")


class JsonText:
    """Reads one value, which begins at the first character given.

    Attributes:
        is_complete: the value is over; nothing more may be read.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """`stops` end a value that is not closed, wherever they stand outside its strings."""
        self.is_complete = False
        self._stops = stops
        self._open: list[str] = []  # the brackets still to come
        self._quote = ""  # of the string that is being read
        self._is_escaped = False
        self._held = ""  # a comma with the space behind it, or the beginning of a literal

    @property
    def is_in_string(self) -> bool:
        return bool(self._quote)

    def read(self, text: str, start: int, *, is_final: bool) -> tuple[str, int]:
        """The JSON that is certain of `text` from `start`, and where reading has to go on."""
        pieces = []
        position = start
        while position < len(text) and not self.is_complete:
            if self._quote:
                piece, position = self._in_string(text, position)
            elif (stop := self._stop_at(text, position)) and len(text) - position >= len(stop):
                self.is_complete = True
                piece = self._held.lstrip(",") + "".join(reversed(self._open))
            elif stop and not is_final:
                break
            elif not self._open and text[position] in _SPACE + ",}]":
                self.is_complete = True
                piece = self._held
            else:
                piece, position = self._outside(text[position]), position + 1
            pieces.append(piece)
        if is_final and not self.is_complete:
            pieces.append("\\" if self._is_escaped else self._held)
        return "".join(pieces), position

    def _stop_at(self, text: str, position: int) -> str:
        """The stop that begins there, or can begin there if the text goes on; "" if none."""
        for stop in self._stops:
            if stop[0] == text[position] and stop.startswith(text[position : position + len(stop)]):
                return stop
        return ""

    def _in_string(self, text: str, position: int) -> tuple[str, int]:
        character = text[position]
        if self._is_escaped:
            self._is_escaped = False
            return _escape(character), position + 1
        if plain := _PLAIN.match(text, position):
            return plain[0], plain.end()
        if character == "\\":
            self._is_escaped = True
            return "", position + 1
        if character == self._quote:
            self._quote = ""
            self.is_complete = not self._open
            return '"', position + 1
        return json.dumps(character)[1:-1], position + 1

    def _outside(self, character: str) -> str:
        before, self._held = self._held, ""
        if before.startswith(","):
            if character in _SPACE:
                self._held = before + character
                return ""
            if character in "}]":
                before = before[1:]
        elif before:
            word = before + character
            if word in _LITERALS:
                return _LITERALS[word]
            if any(literal.startswith(word) for literal in _LITERALS):
                self._held = word
                return ""
        if character in ",TFN":
            self._held = character
            return before
        return before + self._structural(character)

    def _structural(self, character: str) -> str:
        if character in "\"'":
            self._quote = character
            return '"'
        if character in _CLOSING:
            self._open.append(_CLOSING[character])
        elif character in "}]":
            self._open.pop()
            self.is_complete = not self._open
        return character


def _escape(character: str) -> str:
    """An escape as JSON has it; of one that JSON has not, the backslash is meant."""
    if character == "'":
        return character
    if character in _ESCAPED:
        return "\\" + character
    return "\\\\" + json.dumps(character, ensure_ascii=False)[1:-1]


def to_json(text: str) -> str:
    """A value that is the whole `text` as strict JSON, as far as it can be put right."""
    strict, end = JsonText().read(text, 0, is_final=True)
    return strict + text[end:]
