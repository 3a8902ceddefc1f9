"""ReAct calls, of models without a format of their own: a thought, an action and its input.

    Thought: ...
    Action: name
    Action Input: {...}
    Observation:

Source: the ReAct prompt in openai_api.py of QwenLM/Qwen.
"""

import re

from protocol.tools.answer_grammar import (
    ANYTHING,
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    answer_grammar,
)
from protocol.tools.incremental import Steps
from protocol.tools.labelled import LabelledCallParser

_THOUGHT, _ACTION, _INPUT = "thought", "action", "action input"
_OBSERVATION, _ANSWER = "observation", "final answer"
_LABELS = (_THOUGHT, _INPUT, _ACTION, _OBSERVATION, _ANSWER)
_CASE = re.IGNORECASE | re.ASCII  # a dotless i is none; the grammar has to mean the same
_LABEL = re.compile(rf"({'|'.join(_LABELS)})[ \t]*[:：]", _CASE)
_BEGINNINGS = {label[:length] for label in _LABELS for length in range(len(label))}
_LABEL_BEGUN = re.compile(rf"(?:{'|'.join(_BEGINNINGS)}|(?:{'|'.join(_LABELS)})[ \t]*)\Z", _CASE)
_MAX_THOUGHT = 500  # characters before a call that is required: weak models find no end
_ENDS = ("\nObservation:", "\nObservation：", "\nAction:", "\nAction：")


class ReactParser(LabelledCallParser):
    """Implements ToolCallParser. Labels count at the beginning of a line only.

    `Thought:` at the beginning, or behind a call, is dropped; its line is content. It is held until
    the next line has begun: where that is `Final Answer:`, the thought says only that no tool is
    needed, and is dropped with both labels. A thought of more lines is content as it comes, so that
    a model which puts its whole answer there is streamed. Where the prompt ends with `Thought:`,
    that has to be fed first.

    What follows the first `Final Answer:` is the answer, whatever it looks like. `Action:` is a
    call only if a tool's name is alone in its line and `Action Input:` follows. Calls may follow
    one another; what follows an `Observation:` that the model made up is content.
    """

    def _parse(self) -> Steps[None]:
        is_first, is_thought, has_call = True, False, False
        while (yield from self._peek()):
            label, length = yield from self._peek_label()
            if label == _ANSWER:
                if is_first or is_thought:
                    self._drop()
                self._keep()
                yield from self._drop_label(length)
                return
            if label == _THOUGHT and is_first:
                yield from self._drop_label(length)
                yield from self._text_until("\n", settle=self._hold)
                is_first, is_thought = False, True
                continue
            self._settle_content(self._position)
            if label == _OBSERVATION and has_call:
                yield from self._drop_label(length)
                return
            if label == _ACTION and (yield from self._read_call(length)):
                is_first = has_call = True
            else:
                self._position += length
                yield from self._text_until("\n")
                is_first = False
            is_thought = False

    def _peek_label(self) -> Steps[tuple[str, int]]:
        """Read white space; the label that comes next, in lower case, and its length."""
        yield from self._skip()
        while True:
            if found := _LABEL.match(self._text, self._position):
                return found[1].lower(), len(found[0])
            if self._is_ended:
                self._drop_cut_closing()
                return "", 0
            if not _LABEL_BEGUN.match(self._text, self._position):
                return "", 0
            yield from self._wait()

    def _drop_label(self, length: int) -> Steps[None]:
        self._position += length
        yield from self._skip(" \t")
        self._drop()
        self._closings = ()

    def _hold(self, end: int) -> None:
        self._position = end

    def _read_call(self, length: int) -> Steps[bool]:
        """Whether a call comes next, behind a label of `length`; if not, nothing is read."""
        num_unsettled = self._position - self._start
        self._position += length
        name = yield from self._read_name("\n")
        if name is not None:
            label, length = yield from self._peek_label()
            if label == _INPUT:
                self._position += length
                self._begin(name)
                yield from self._read_labelled(*_ENDS)
                return True
        self._position = self._start + num_unsettled
        return False


def react_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer. A line that begins with `Action:` begins a call, unless
    `Final Answer:` came before; a call that is required may have a thought of one line. There is
    one call in an answer: the format goes on with its result.
    """
    line = rf"{ANYTHING}\n[ \t\r\n]*" if rules.continues_line else rf"({ANYTHING}\n)?[ \t\r\n]*"
    # what begins as JSON is an answer where that has to be JSON
    first = r"[^\n]" if rules.content_schema is None else r"[^\s{\[\"]"
    thought = rf"/ ?{first}[^\n]{{0,{_MAX_THOUGHT}}}\n/"
    syntax = CallSyntax(
        begin="Action:",
        separator=None,
        lead=thought if rules.continues_line else f'("Thought:" {thought})?',
        found=[rf"{line}{_in_any_case(_ACTION)}[ \t]*[:：]"],
        answered=[rf"{line}{_in_any_case(_ANSWER)}[ \t]*[:：]"],
    )
    return answer_grammar(rules, syntax, _write_call)


def _in_any_case(label: str) -> str:
    return "".join(f"[{char}{char.upper()}]" for char in label)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    head = lark.text(f" {tool.name}\nAction Input: ")
    return f"{head} {lark.arguments(tool, number)}"
