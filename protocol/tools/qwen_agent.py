"""Calls in Qwen-Agent's own format, which it taught Qwen1.5 and Qwen2 in the prompt.

    ✿FUNCTION✿: name
    ✿ARGS✿: {...}
    ✿RESULT✿: ...
    ✿RETURN✿: the answer

Source: qwen_fncall_prompt.py of QwenLM/Qwen-Agent.
"""

from protocol.tools.answer_grammar import (
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    answer_grammar,
)
from protocol.tools.calls import CallArguments
from protocol.tools.incremental import Steps
from protocol.tools.labelled import LabelledCallParser

_FUNCTION, _ARGS, _RESULT, _RETURN = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"
_ENDS = (_FUNCTION, _RESULT, _RETURN)
_COLON = " \t:："


class QwenAgentParser(LabelledCallParser):
    """Implements ToolCallParser.

    `✿RETURN✿:` is dropped; behind a result, where the prompt ends with it, a call may follow all
    the same. What follows a `✿RESULT✿:` that the model made up is content.
    """

    def _parse(self) -> Steps[None]:
        has_call = False
        while marker := (yield from self._text_until(_FUNCTION, _ARGS, _RESULT, _RETURN)):
            if marker == _FUNCTION:
                is_call = yield from self._read_call()
                has_call = has_call or is_call
            elif marker == _RETURN:
                yield from self._drop_label(len(marker))
            elif marker == _RESULT and has_call:
                yield from self._drop_label(len(marker))
                return
            else:
                self._keep()

    def _drop_label(self, length: int) -> Steps[None]:
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


def qwen_agent_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer."""
    syntax = CallSyntax(
        begin=_FUNCTION,
        separator="\n",
        endings=(f"\n{_RESULT}", f"\n{_RETURN}"),
    )
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    head = lark.text(f": {tool.name}\n{_ARGS}: ")
    return f"{head} {lark.arguments(tool, number)}"
