"""Calls of ChatGLM3: a line with the tool's name, then a Python call in a code block.

    <|assistant|>get_weather
     ```python
    tool_call(city='Beijing')
    ```

Source: process_response in modeling_chatglm.py of THUDM/chatglm3-6b, which runs eval() on the call.
"""

import ast
import json
import warnings

from protocol.tools.calls import CallArguments
from protocol.tools.incremental import IncrementalParser, Steps

_ROLE = "<|assistant|>"
_FENCE = "```"
_MAX_DEPTH = 100  # of brackets that are parsed; Python's parser has a limit too


class ChatGLM3Parser(IncrementalParser):
    """Implements ToolCallParser. The arguments are known once the Python call is complete.

    A call may begin at the beginning, in a new line, or behind the text of the role token, which
    is dropped with it. Arguments that are no literals by name stay the Python text that they are.
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
            if not any(name.startswith(line.rstrip()) for name in self._names):
                return None
        name = line.rstrip()
        if name not in self._names:
            return None
        yield from self._skip()
        if (yield from self._read(_FENCE)):
            while (yield from self._peek()).isalnum():  # the language
                self._position += 1
            yield from self._skip()
        return name if (yield from self._read("tool_call(")) else None

    def _read_arguments(self) -> Steps[None]:
        """Read to the closing parenthesis, or to the end of the text."""
        deepest = depth = 1
        while depth and (character := (yield from self._peek())):
            if character in "\"'":
                yield from self._read_string(character)
                continue
            self._position += 1
            depth += (character in "([{") - (character in ")]}")
            deepest = max(deepest, depth)
        source = self._text[self._start : self._position]
        self._drop()
        if depth:
            self._events.append(CallArguments(source))
        elif deepest > _MAX_DEPTH:
            self._events.append(CallArguments(source[:-1]))
        else:
            self._events.append(CallArguments(_to_json(source[:-1])))

    def _read_string(self, quote: str) -> Steps[None]:
        """A Python string, of one line or of several."""
        closing = quote * 3 if (yield from self._peek(3)) == quote * 3 else quote
        self._position += len(closing)
        while (character := (yield from self._peek())) and not (yield from self._read(closing)):
            self._position += 1
            if character == "\\":
                yield from self._peek()
                self._position = min(self._position + 1, len(self._text))


def _to_json(source: str) -> str:
    """The keyword arguments `source` as a JSON object, or as they are if that cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings that Python does not know
            parsed = ast.parse(f"tool_call({source})", mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            return source
        values = {}
        for keyword in parsed.keywords:
            if keyword.arg is None or keyword.arg in values:
                return source
            values[keyword.arg] = ast.literal_eval(keyword.value)
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return source
