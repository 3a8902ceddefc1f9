"""Prompts of Hermes against what the real template of Qwen2.5 makes of the same conversation."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from protocol.prompt import TemplateError
from protocol.tools.calls import Tool
from protocol.tools.hermes_prompt import hermes_prompt
from tests.protocol import vocabularies

WEATHER = Tool(
    "get_weather",
    "天气 of a <city> & its 'state'",
    {"type": "object", "properties": {"city": {"type": "string"}}},
)
NOW = Tool("now", "", {"type": "object", "properties": {}})
DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "now", "parameters": {"type": "object", \
"properties": {}}}}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def calling(text: str | None, *arguments: str) -> dict[str, Any]:
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": "now", "arguments": one}}
        for i, one in enumerate(arguments)
    ]
    return turn("assistant", text, tool_calls=calls)


def result(number: int, text: str) -> dict[str, Any]:
    return turn("tool", text, tool_call_id=f"call_{number}")


def test_texts() -> None:
    prompt = hermes_prompt(
        [
            turn("user", "?"),
            calling("I look.", '{"at":"北京"}', "{}"),
            *(result(0, "5 o'clock"), result(1, "")),
            calling(None, "{}"),
            result(0, "6"),
            turn("assistant", "Six."),
        ],
        [NOW],
    )
    assert prompt.messages == [
        turn("system", TOLD),
        turn("user", "?"),
        turn(
            "assistant",
            'I look.\n<tool_call>\n{"name": "now", "arguments": {"at": "北京"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        ),
        turn(
            "user",
            "<tool_response>\n5 o'clock\n</tool_response>\n<tool_response>\n\n</tool_response>",
        ),
        turn("assistant", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        turn("user", "<tool_response>\n6\n</tool_response>"),
        turn("assistant", "Six."),
    ]
    assert not prompt.continues


def test_the_tools_stand_behind_the_system_text() -> None:
    asked = [turn("system", "Be kind."), turn("user", "?")]
    made = hermes_prompt(asked, [NOW]).messages
    assert made == [turn("system", f"Be kind.\n\n{TOLD}"), turn("user", "?")]
    assert hermes_prompt(asked, []).messages == asked


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"a":1,"b":[true,null]}', '{"a": 1, "b": [true, null]}'),
        (r'{"a": "\u00e9\ud83d\ude00"}', '{"a": "é😀"}'),
        ("[1]", "[1]"),
        (r'{"a":"\ud83d"}', r'{"a":"\ud83d"}'),
        ('{"a": 1e999}', '{"a": 1e999}'),
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a": ', '{"a": '),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments(arguments: str, written: str) -> None:
    made = hermes_prompt([turn("user", "?"), calling(None, arguments)], [NOW]).messages
    assert made[2]["content"] == (
        f'<tool_call>\n{{"name": "now", "arguments": {written}}}\n</tool_call>'
    )
    assert made[2]["content"].encode()


def test_a_result_without_a_call_is_refused() -> None:
    with pytest.raises(TemplateError, match="has to follow a call"):
        hermes_prompt([turn("user", "?"), result(0, "5")], [NOW])
    with pytest.raises(TemplateError, match="no call of the message before has the id 'call_1'"):
        hermes_prompt([turn("user", "?"), calling(None, "{}"), result(1, "5")], [NOW])


CONTENTS = st.sampled_from(["", "Hi", "你好 <b> & 'c'", " a\n", "<tool_call>", '{"t": 1}'])
ARGUMENTS = st.sampled_from(
    ["{}", '{"a":1.5,"b":[true,null]}', r'{"城": "\u5317京\"<&"}', '{ "c" : { } }']
)


@st.composite
def exchanges(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A question, and answers to it with calls and results in any order."""
    messages = [turn("user", draw(CONTENTS))]
    for _ in range(draw(st.integers(0, 3))):
        arguments = draw(st.lists(ARGUMENTS, max_size=3))
        messages.append(calling(draw(CONTENTS), *arguments))
        for i in draw(st.permutations(range(len(arguments)))):
            messages.append(result(i, draw(CONTENTS)))
    return messages


@pytest.mark.real_model
@given(
    system=st.none() | CONTENTS,
    turns=st.lists(exchanges(), min_size=1, max_size=3),
    tools=st.sampled_from([[], [WEATHER], [NOW, WEATHER]]),
)
def test_prompts_equal_those_of_the_real_template(
    qwen_coder_path: Path,
    system: str | None,
    turns: list[list[dict[str, Any]]],
    tools: list[Tool],
) -> None:
    messages = [message for turn in turns for message in turn]
    if system is not None:
        messages = [turn("system", system), *messages]
    parsed = deepcopy(messages)
    for call in (call for message in parsed for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    definitions = [tool.definition for tool in tools]
    expected = rendered(qwen_coder_path, parsed, tools=definitions or None)
    if system is None and tools:
        assert expected.count(DEFAULT_SYSTEM) == 1
        expected = expected.replace(DEFAULT_SYSTEM, "")
    assert rendered(qwen_coder_path, hermes_prompt(messages, tools).messages) == expected


def rendered(path: Path, messages: list[dict[str, Any]], **options: Any) -> str:
    texts, _ = render_jinja_template(
        [messages],
        chat_template=vocabularies.read_vocab(path).chat_template,
        add_generation_prompt=True,
        **options,
    )
    text: str = texts[0]
    return text
