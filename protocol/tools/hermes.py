"""Calls of Qwen2.5 and Qwen3, in the format of Nous Hermes: JSON between <tool_call> markers.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Source: the chat templates of Qwen2.5 and Qwen3. Small models, and Qwen2.5-Coder of any size, leave
the markers out or write a code fence in their place.
"""

from collections.abc import Sequence

from protocol.tools.calls import Tool
from protocol.tools.incremental import Steps
from protocol.tools.json_calls import JsonCallParser

OPENING, CLOSING = "<tool_call>", "</tool_call>"
FENCE = "```"
OTHER_TAGS = ("tools", "tool", "function_call")


class HermesParser(JsonCallParser):
    """Implements ToolCallParser.

    The closing marker may be missing. What stands between a call's object and its closing marker,
    as a bracket too many, is content; the marker is dropped all the same.

    Without markers, or in a code fence or tags of another name, an object is a call where it begins
    a line and its first key is "name" with that of a tool; there may be a list of them.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools, CLOSING)

    def _parse(self) -> Steps[None]:
        yield from self._read_all_unmarked()
        while marker := (yield from self._text_until(OPENING, CLOSING, "\n")):
            if marker == "\n":
                yield from self._read_all_unmarked()
            elif marker == OPENING:
                yield from self._skip()
                is_call = yield from self._read_call()
                self._closings = (CLOSING,) if is_call else ()
            elif self._closings:
                self._drop()
                self._closings = ()
            else:
                self._keep()

    def _read_all_unmarked(self) -> Steps[None]:
        while (yield from self._read_unmarked()):
            pass

    def _read_unmarked(self) -> Steps[bool]:
        """Read a call without markers, or a list of them; of what is none only white space."""
        yield from self._skip()
        offset = self._position - self._start
        closing = yield from self._read_opening()
        yield from self._skip()
        is_list = yield from self._read("[")
        yield from self._skip()
        if not (yield from self._is_call_next()):
            self._position = self._start + offset
            return False
        closings = [marker for marker in ("]" if is_list else "", closing) if marker]
        while (yield from self._is_call_next()):
            yield from self._read_call()
            self._closings = tuple(closings)
            yield from self._skip(" \t\r\n,")
        for marker in closings:
            if (yield from self._read(marker)):
                self._drop()
            elif self._is_ended:
                self._drop_cut_closing()
            yield from self._skip()
        yield from self._drop_last_closing()
        self._closings = (CLOSING,)  # which some write all the same
        return True

    def _drop_last_closing(self) -> Steps[None]:
        """Read what would close another opening than the call has, where it ends the text."""
        offset = self._position - self._start
        yield from self._read("]")
        yield from self._skip()
        for closing in (FENCE, *(f"</{tag}>" for tag in OTHER_TAGS)):
            if (yield from self._read(closing)):
                break
        yield from self._skip()
        if (yield from self._peek()):
            self._position = self._start + offset
        else:
            self._drop()

    def _read_opening(self) -> Steps[str]:
        """Read what may stand in place of the opening marker; what closes it, "" if nothing."""
        is_fenced = False
        while (yield from self._read(FENCE)):  # a second where the first closes what has none open
            is_fenced = True
            yield from self._skip_language()
            yield from self._skip()
        if is_fenced:
            return FENCE
        for tag in OTHER_TAGS:
            if (yield from self._read(f"<{tag}>")):
                return f"</{tag}>"
        return ""

    def _is_call_next(self) -> Steps[bool]:
        """Whether an object begins with the name of a tool; reads nothing."""
        offset = self._position - self._start
        is_call = yield from self._read_name_member()
        self._position = self._start + offset
        return is_call

    def _read_name_member(self) -> Steps[bool]:
        """Read a brace and the member "name"; False as soon as something else is there."""
        if not (yield from self._read("{")):
            return False
        yield from self._skip()
        quote = yield from self._peek()
        if quote not in ('"', "'") or not (yield from self._read(f"{quote}name{quote}")):
            return False
        yield from self._skip()
        if not (yield from self._read(":")):
            return False
        yield from self._skip()
        quote = yield from self._peek()
        if quote not in ('"', "'"):
            return False
        self._position += 1
        name = ""
        while (character := (yield from self._peek())) != quote:
            name += character
            self._position += 1
            if not character or not any(known.startswith(name) for known in self._names):
                return False
        return name in self._names
