"""Calls of Qwen2.5 and Qwen3, in the format of Nous Hermes: JSON between <tool_call> markers.

Source: the chat templates of Qwen2.5 and Qwen3.
"""

from collections.abc import Sequence

from protocol.tools.calls import Tool
from protocol.tools.incremental import Steps
from protocol.tools.json_calls import JsonCallParser

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"


class HermesParser(JsonCallParser):
    """Implements ToolCallParser.

    The closing marker may be missing. What stands between a call's object and its closing marker,
    as a bracket too many, is content; the marker is dropped all the same.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools, _CLOSING)

    def _parse(self) -> Steps[None]:
        while marker := (yield from self._text_until(_OPENING, _CLOSING)):
            if marker == _OPENING:
                yield from self._skip()
                is_call = yield from self._read_call()
                self._closings = (_CLOSING,) if is_call else ()
            elif self._closings:
                self._drop()
                self._closings = ()
            else:
                self._keep()
