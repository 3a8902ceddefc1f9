"""Answers that are JSON or calls: what begins as JSON is never taken for a call."""

import pytest

from protocol.tools.calls import CallBegin, Content, ToolEvent, joined
from protocol.tools.formats import FORMATS, ToolFormat
from protocol.tools.json_answers import JsonAnswerParser
from tests.protocol.tools.parsing import TOOLS, call, parse

HERMES = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("tool_format", "text", "events"),
    [
        (ToolFormat.HERMES, HERMES, call("now")),
        (ToolFormat.HERMES, f"\n {HERMES}", call("now")),
        (ToolFormat.HERMES, '{"name": "now"}', [Content('{"name": "now"}')]),
        (ToolFormat.HERMES, '[\n{"name": "now"}]', [Content('[\n{"name": "now"}]')]),
        (ToolFormat.QWEN3_CODER, '"<function=now>"', [Content('"<function=now>"')]),
        (ToolFormat.QWEN_AGENT, '{"a": "✿FUNCTION✿: now✿', [Content('{"a": "✿FUNCTION✿: now✿')]),
        (ToolFormat.REACT, "3", [Content("3")]),
        (ToolFormat.REACT, "Action: now\nAction Input: {}", call("now")),
        (ToolFormat.HERMES, "", []),
        (ToolFormat.HERMES, " \n", [Content(" \n")]),
    ],
)
def test_answers(tool_format: ToolFormat, text: str, events: list[ToolEvent]) -> None:
    assert parse(lambda tools: JsonAnswerParser(FORMATS[tool_format].parser(tools)), text) == events


def test_what_a_prompt_begins_is_no_content_of_json() -> None:
    calls = FORMATS[ToolFormat.REACT].parser(TOOLS)
    calls.feed("Thought:")
    parser = JsonAnswerParser(calls)
    assert parser.feed(' {"a"') == [Content(' {"a"')]
    assert parser.feed(": 1}\n") == [Content(": 1}\n")] and parser.flush() == []


def test_calls_come_as_they_come() -> None:
    parser = JsonAnswerParser(FORMATS[ToolFormat.HERMES].parser(TOOLS))
    assert parser.feed("\n") == []
    assert joined(parser.feed('<tool_call>{"name": "now"')) == [CallBegin("now")]
