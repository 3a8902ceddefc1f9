"""Calls of Qwen3-Coder: XML with one element for each argument, its value as plain text.

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

Source: the chat template of Qwen3-Coder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocol.tools.calls import Tool
from protocol.tools.incremental import IncrementalParser, Steps
from protocol.tools.json_text import JsonText, to_json
from protocol.tools.parameter_types import JSON_TYPES, parameter_types

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_IN_CALL = (_PARAMETER, _FUNCTION_END, _CLOSING, _OPENING, _FUNCTION)


class Qwen3CoderParser(IncrementalParser):
    """Implements ToolCallParser; the arguments become one JSON object.

    A value is a string where the schema says so, and passed on as it comes. Any other is passed on
    once it is complete: as JSON if it is of a type that the schema allows, else as a string. One
    line break at either end of a value belongs to its markers; without it, none of them is in a
    string of JSON. <tool_call> may be missing, which
    the model forgets at times, and so may every closing marker but </parameter>.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._schemas = {tool.name: tool.parameters for tool in tools}

    def _parse(self) -> Steps[None]:
        while marker := (yield from self._text_until(_OPENING, _FUNCTION, _CLOSING)):
            if marker == _CLOSING and self._closings:
                self._drop()
                self._closings = ()
            elif marker == _FUNCTION or (marker == _OPENING and (yield from self._is_function())):
                yield from self._read_function()
            else:
                self._keep()

    def _is_function(self) -> Steps[bool]:
        yield from self._skip()
        return (yield from self._read(_FUNCTION))

    def _read_function(self) -> Steps[None]:
        name = yield from self._read_label()
        if name in self._schemas:
            self._begin(name)
            yield from self._read_arguments(self._schemas[name])
        else:
            self._keep()
            if name is not None:  # nothing in the values of its arguments is a marker
                yield from self._text_until(_FUNCTION_END, _CLOSING)
                self._keep()

    def _read_label(self) -> Steps[str | None]:
        """What stands before the next ">", None when it is no name."""
        label = ""
        while (character := (yield from self._peek())) != ">":
            if not character or character == "<" or character.isspace():
                return None
            label += character
            self._position += 1
        self._position += 1
        return label

    def _read_arguments(self, schema: Mapping[str, Any]) -> Steps[None]:
        self._arguments("{")
        self._closings = (_PARAMETER, _PARAMETER_END, _FUNCTION_END, _CLOSING)
        separator = ""
        while marker := (yield from self._text_until(*_IN_CALL)):
            if marker != _PARAMETER:
                if marker in (_OPENING, _FUNCTION):
                    self._position -= len(marker)
                self._arguments("}")
                self._closings = () if marker == _CLOSING else (_CLOSING,)
                return
            key = yield from self._read_label()
            if key is not None:
                self._arguments(f"{separator}{_quoted(key)}: ")
                yield from self._read_value(parameter_types(schema, key))
                separator = ", "
            elif (yield from self._peek()):
                self._keep()
            else:
                self._drop()  # the text ends in the name

    def _read_value(self, types: frozenset[str]) -> Steps[None]:
        yield from self._read("\n")
        self._drop()
        if types == {"string"}:
            self._arguments('"')
            if (yield from self._value_until_end(lambda text: self._arguments(_escaped(text)))):
                self._arguments('"')
            return
        pieces: list[str] = []
        marker = yield from self._value_until_end(pieces.append)
        if "".join(pieces).lstrip()[:1] in ("[", "{"):
            json_text = JsonText()
            json_text.read("".join(pieces).lstrip(), 0, is_final=False)
            while marker == _PARAMETER_END and json_text.is_in_string:  # which has no line breaks
                num_read = len(pieces)
                pieces.append(marker)
                marker = yield from self._value_until_end(pieces.append)
                json_text.read("".join(pieces[num_read:]), 0, is_final=False)
        value = "".join(pieces)
        self._arguments(converted(value, types) if marker else value)

    def _value_until_end(self, emit: Callable[[str], None]) -> Steps[str]:
        """Read a value and its closing marker, which is "" if the text ends before."""

        def settle(end: int) -> None:
            text = self._text[self._start : end]
            self._position = self._start = end
            emit(text)

        marker = yield from self._text_until(f"\n{_PARAMETER_END}", _PARAMETER_END, settle=settle)
        self._drop()
        return marker


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """A part of a JSON string."""
    return _quoted(text)[1:-1]


def converted(value: str, types: frozenset[str]) -> str:
    """A value that has not to be a string, as JSON of one of `types`, of any if there are none."""
    text = value.strip()
    for candidate in (text, to_json(text)):
        try:
            parsed = json.loads(candidate, parse_constant=_refuse)
        except (ValueError, RecursionError):
            continue
        if _fits(parsed, types):
            return candidate
    return _quoted(value)


def _fits(parsed: object, types: frozenset[str]) -> bool:
    """A text that is allowed to be a string is that, unless it says something else that is."""
    if "string" in types or not types:
        is_string = isinstance(parsed, str)
        return not is_string and (not types or bool(JSON_TYPES[type(parsed)] & types))
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
