"""Calls of Llama 3.1 and later: a message that is nothing but {"name": ..., "parameters": {...}}.

Source: the chat templates of Llama 3.1 and 3.2, and Meta's prompt format pages for both.
"""

from collections.abc import Sequence

from protocol.tools.answer_grammar import (
    ANYTHING,
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    answer_grammar,
    pattern,
)
from protocol.tools.calls import Tool
from protocol.tools.incremental import Steps
from protocol.tools.json_calls import JsonCallParser

_PYTHON_TAG = "<|python_tag|>"


class Llama3Parser(JsonCallParser):
    """Implements ToolCallParser.

    Calls stand at the beginning, behind <|python_tag|> if that is there, and one behind another,
    with or without a semicolon between them. What does not go on so is content.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools, _PYTHON_TAG)

    def _parse(self) -> Steps[None]:
        yield from self._skip()
        while (yield from self._read_tag()) or (yield from self._peek()) == "{":
            yield from self._skip()
            yield from self._read_call()
            yield from self._skip(" \t\r\n;")

    def _read_tag(self) -> Steps[bool]:
        return (yield from self._read(_PYTHON_TAG))


def llama3_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer. One that begins with a brace is a call: content begins otherwise.

    There is one call in it: the templates refuse to write more into a history.
    """
    syntax = CallSyntax(
        begin="",
        separator=None,
        excluded=rf"\s*({pattern(_PYTHON_TAG)})?\s*\{{{ANYTHING}",
    )
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    head = lark.text(f'{{"name": "{tool.name}", "parameters": ')
    return f"{head} {lark.arguments(tool, number)} {lark.text('}')}"
