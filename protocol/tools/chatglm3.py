"""Calls of ChatGLM3: a line with the tool's name, then a Python call in a code block.

    <|assistant|>get_weather
     ```python
    tool_call(city='Beijing')
    ```

Source: process_response in modeling_chatglm.py of THUDM/chatglm3-6b, which runs eval() on the call.
"""

import ast
import json
import re
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise

from protocol.tools.calls import CallArguments
from protocol.tools.incremental import IncrementalParser, Steps

_ROLE = "<|assistant|>"
_FENCE = "```"
_BLANKS = " \t\r"
_MAX_DEPTH = 100  # of brackets that are parsed; Python's parser has a limit too
_NAMES = {"true": True, "false": False, "null": None}
_SURROGATE = re.compile("[\ud800-\udfff]")


class ChatGLM3Parser(IncrementalParser):
    """Implements ToolCallParser. The arguments are known once the Python call is complete.

    A call may begin at the beginning, in a new line, or behind the text of the role token, which
    is dropped with it. Each argument is JSON, or else a literal of Python; its name may be a word
    that Python keeps for itself. Arguments that are neither, or have no names, stay as they are.
    """

    def _parse(self) -> Steps[None]:
        while (yield from self._peek()):
            if not (yield from self._read_call()):
                yield from self._text_until("\n", _ROLE)

    def _read_call(self) -> Steps[bool]:
        """Whether a call comes next; if not, nothing is read."""
        num_unsettled = self._position - self._start
        name = yield from self._read_head()
        if name is None:
            self._position = self._start + num_unsettled
            return False
        self._begin(name)
        self._closings = ()
        yield from self._read_arguments()
        self._closings = (_FENCE,)
        yield from self._skip()
        if (yield from self._read(_FENCE)):
            self._drop()
        elif self._is_ended:
            self._drop_cut_closing()
        return True

    def _read_head(self) -> Steps[str | None]:
        """Read all before the arguments; the tool's name, None if there is no call."""
        yield from self._skip()
        line = ""
        while (character := (yield from self._peek())) and character != "\n":
            self._position += 1
            line += character
            if not any(name.startswith(line.rstrip(_BLANKS)) for name in self._names):
                return None
        name = line.rstrip(_BLANKS)
        if name not in self._names:
            return None
        yield from self._skip()
        if (yield from self._read(_FENCE)):
            yield from self._skip_language()
            yield from self._skip()
        return name if (yield from self._read("tool_call(")) else None

    def _read_arguments(self) -> Steps[None]:
        """Read to the closing parenthesis, or to the end of the text."""
        deepest = depth = 1
        ends = [-1]  # of each argument, and one before the first
        while depth and (character := (yield from self._peek())):
            if character in "\"'":
                yield from self._read_string(character)
                continue
            depth += (character in "([{") - (character in ")]}")
            deepest = max(deepest, depth)
            if depth == 0 or (depth == 1 and character == ","):
                ends.append(self._position - self._start)
            self._position += 1
        source = self._text[self._start : self._position]
        self._drop()
        if depth:
            self._events.append(CallArguments(source))
        elif deepest > _MAX_DEPTH:
            self._events.append(CallArguments(source[:-1]))
        else:
            pieces = [source[start + 1 : end] for start, end in pairwise(ends)]
            self._events.append(CallArguments(_to_json(pieces)))

    def _read_string(self, quote: str) -> Steps[None]:
        """A Python string, of one line or of several."""
        closing = quote * 3 if (yield from self._peek(3)) == quote * 3 else quote
        self._position += len(closing)
        while (character := (yield from self._peek())) and not (yield from self._read(closing)):
            self._position += 1
            if character == "\\":
                yield from self._peek()
                self._position = min(self._position + 1, len(self._text))


def _to_json(arguments: Sequence[str]) -> str:
    """Python's arguments by name as a JSON object, or as they are if that cannot be."""
    source = ",".join(arguments)
    if not arguments[-1].strip():  # none at all, or a comma behind the last
        arguments = arguments[:-1]
    values: dict[str, object] = {}
    try:
        for argument in arguments:
            given = _read_argument(argument.strip())
            if not values.keys().isdisjoint(given):
                return source
            values |= given
        written = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return source
    # half a character can be said by an escape only; two halves are one again when JSON is read
    return _SURROGATE.sub(lambda half: json.dumps(half[0])[1:-1], written)


def _read_argument(argument: str) -> dict[str, object]:
    """Name and value, or those of a dict behind **. Raises as ast.parse and literal_eval do."""
    if argument.startswith("**"):
        values = _read_value(argument[2:])
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise TypeError("no names behind **")
        return values
    name, equals, value = argument.partition("=")
    if not equals or not name.strip().isidentifier():
        raise SyntaxError("no argument by name")
    return {name.strip(): _read_value(value)}


def _read_value(text: str) -> object:
    """JSON, or else a literal of Python; its strings have other escapes than those of JSON."""
    try:
        return json.loads(text, parse_float=_number, parse_constant=_refuse)
    except ValueError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings that Python does not know
            node = ast.parse(text.strip(), mode="eval")
        return ast.literal_eval(_JsonNames().visit(node))


def _number(text: str) -> float:
    """The largest of Python's for one that it has not: JSON has no infinity to say."""
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class _JsonNames(ast.NodeTransformer):
    """Makes JSON's names of values Python's, for lists that have values of both."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node
