"""Calls that are one JSON object, {"name": ..., "arguments": {...}}, of hermes.py and llama3.py."""

import json
from collections.abc import Sequence

from protocol.tools.calls import CallArguments, Tool
from protocol.tools.incremental import IncrementalParser, Steps
from protocol.tools.json_text import to_json

_ARGUMENTS = ("arguments", "parameters")


class JsonCallParser(IncrementalParser):
    """Reads such objects: keys in any order, arguments also as a string that holds their JSON.

    A call begins once its name is read, so arguments that stand before the name are held. Other
    keys belong to the markers. The object of an unknown tool is content to its end, so nothing in
    its strings is a marker.
    """

    def __init__(self, tools: Sequence[Tool], stop: str) -> None:
        """`stop`: the marker that ends arguments whose brackets are not closed."""
        super().__init__(tools)
        self._stop = stop
        self._is_begun = False
        self._given: str | None = None  # the arguments; "" when they were passed on as they came

    def _read_call(self) -> Steps[bool]:
        """Read the object that comes next, settled when this is over; whether it was a call.

        Where it is no JSON any more, it is over.
        """
        self._is_begun, self._given = False, None
        is_closed = yield from self._read_object()
        if not self._is_begun:
            self._keep()
            self._is_rejected = False
        elif is_closed or (yield from self._peek()):
            if self._given is None:
                self._events.append(CallArguments("{}"))
        elif self._is_cut():
            self._drop()
        return self._is_begun

    def _is_cut(self) -> bool:
        """The text ends where a call would go on with its arguments."""
        rest = "".join(self._text[self._start :].split()).lstrip(",")
        return any(f'"{key}":'.startswith(rest) for key in _ARGUMENTS)

    def _read_object(self) -> Steps[bool]:
        """False when it is not read to its end."""
        keys = set()
        if not (yield from self._read("{")):
            return False
        while True:
            yield from self._skip(" \t\r\n,")
            if (yield from self._read("}")):
                if self._is_begun:
                    self._drop()
                return True
            key = yield from self._read_string()
            yield from self._skip()
            if key is None or key in keys or not (yield from self._read(":")):
                return False
            keys.add(key)
            yield from self._skip()
            if not (yield from self._read_member(key)):
                return False

    def _read_member(self, key: str) -> Steps[bool]:
        """The value of `key`; False where it is not complete."""
        if key == "name":
            return (yield from self._read_name())
        if key in _ARGUMENTS and self._given is None:
            return (yield from self._read_arguments())
        return (yield from self._json_value(_ignore, self._stop))

    def _read_name(self) -> Steps[bool]:
        name = yield from self._read_string()
        if name not in self._names:
            self._is_rejected = True
            return name is not None
        self._is_begun = True
        self._begin(name)
        if self._given is not None:
            self._arguments(self._given)
        return True

    def _read_arguments(self) -> Steps[bool]:
        first = yield from self._peek()
        if not first:
            return False
        if first == "{" and self._is_begun:
            self._given = ""
            return (yield from self._json_value(self._arguments, self._stop))
        pieces: list[str] = []
        is_complete = yield from self._json_value(pieces.append, self._stop)
        self._given = _decoded("".join(pieces))
        if self._is_begun:
            self._arguments(self._given)
        return is_complete

    def _read_string(self) -> Steps[str | None]:
        """The string that comes next, None if that is none or not complete."""
        pieces: list[str] = []
        quote = yield from self._peek()
        if quote not in ('"', "'") or not (yield from self._json_value(pieces.append)):
            return None
        try:
            return str(json.loads("".join(pieces)))
        except ValueError:  # an escape that is none
            return None


def _ignore(text: str) -> None:
    """The text is read, and not wanted."""


def _decoded(arguments: str) -> str:
    """The JSON object meant by a value that is none."""
    if arguments in ("null", '""', ""):
        return "{}"
    if arguments.startswith('"'):
        try:
            inner = str(json.loads(arguments)).strip()
        except ValueError:  # not complete, or an escape that is none
            return arguments
        if inner.startswith("{"):
            return to_json(inner)
    return arguments
