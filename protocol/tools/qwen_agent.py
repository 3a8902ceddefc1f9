"""Calls in Qwen-Agent's own format, which it taught Qwen1.5 and Qwen2 in the prompt.

    ✿FUNCTION✿: name
    ✿ARGS✿: {...}
    ✿RESULT✿: ...
    ✿RETURN✿: the answer

Source: qwen_fncall_prompt.py of QwenLM/Qwen-Agent.
"""

from protocol.tools.calls import CallArguments
from protocol.tools.incremental import Steps
from protocol.tools.labelled import LabelledCallParser

_FUNCTION, _ARGS, _RESULT, _RETURN = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"
_ENDS = (_FUNCTION, _RESULT, _RETURN)
_COLON = " \t:："


class QwenAgentParser(LabelledCallParser):
    """Implements ToolCallParser.

    `✿RETURN✿:` is dropped; what follows it is the answer. So is what follows a `✿RESULT✿:` that
    the model made up.
    """

    def _parse(self) -> Steps[None]:
        has_call = False
        while marker := (yield from self._text_until(_FUNCTION, _ARGS, _RESULT, _RETURN)):
            if marker == _FUNCTION:
                is_call = yield from self._read_call()
                has_call = has_call or is_call
            elif marker == _RETURN or (marker == _RESULT and has_call):
                yield from self._read_answer(len(marker))
                return
            else:
                self._keep()

    def _read_answer(self, length: int) -> Steps[None]:
        """Drop the marker of `length` that has been read; space before it parts two contents."""
        if not self._follows_call:
            self._position -= length
            self._keep()
            self._position += length
        yield from self._skip(_COLON)
        self._drop()

    def _read_call(self) -> Steps[bool]:
        yield from self._skip(_COLON)
        name = yield from self._read_name("\n✿")
        if name is None:
            self._keep()
            return False
        self._begin(name)
        self._closings = (_ARGS, *_ENDS)
        yield from self._skip()
        if (yield from self._read(_ARGS)):
            yield from self._skip(_COLON)
            yield from self._read_labelled(*_ENDS)
        elif (rest := (yield from self._peek(len(_ARGS)))) == "" or not _ARGS.startswith(rest):
            self._events.append(CallArguments("{}"))
        return True
