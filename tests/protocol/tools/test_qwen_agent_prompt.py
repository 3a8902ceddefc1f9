"""Prompts of Qwen-Agent against those of the qwen-agent package.

Every text here was printed by version 0.0.34 of it: `_preprocess_messages` of a model with
fncall_prompt_type "qwen", after text and calls of a message were made a message each, as it has
them. The prompts of 2,000 random conversations were compared with its own once, and were equal.
"""

from typing import Any

import pytest

from protocol.prompt import TemplateError
from protocol.tools.calls import Tool
from protocol.tools.qwen_agent_prompt import qwen_agent_prompt

DRAW = Tool(
    "image_gen",
    "Draws a picture.",
    {"type": "object", "properties": {"提示": {"type": "string"}}},
    name_for_human="画图",
)
CODE = Tool("code_interpreter", "Runs code.", {"type": "object", "properties": {}})

ENGLISH = """# Tools

## You have access to the following tools:

### 画图

image_gen: Draws a picture. Parameters: {"type": "object", "properties": {"提示": \
{"type": "string"}}} Format the arguments as a JSON object.

### code_interpreter

code_interpreter: Runs code. Parameters: {"type": "object", "properties": {}} Enclose the code \
within triple backticks (`) at the beginning and end of the code.

## When you need to call a tool, please insert the following command in your reply, which can be \
called zero or multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [image_gen,code_interpreter]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""
CHINESE = """# 工具

## 你拥有如下工具：

### 画图

image_gen: Draws a picture. 输入参数：{"type": "object", "properties": {"提示": \
{"type": "string"}}} 此工具的输入应为JSON对象。

### code_interpreter

code_interpreter: Runs code. 输入参数：{"type": "object", "properties": {}} \
此工具的输入应为Markdown代码块。

## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

✿FUNCTION✿: 工具名称，必须是[image_gen,code_interpreter]之一。
✿ARGS✿: 工具输入
✿RESULT✿: 工具结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""
ENGLISH_PARALLEL = """# Tools

## You have access to the following tools:

### 画图

image_gen: Draws a picture. Parameters: {"type": "object", "properties": {"提示": \
{"type": "string"}}} Format the arguments as a JSON object.

## Insert the following command in your reply when you need to call N tools in parallel:

✿FUNCTION✿: The name of tool 1, should be one of [image_gen]
✿ARGS✿: The input of tool 1
✿FUNCTION✿: The name of tool 2
✿ARGS✿: The input of tool 2
...
✿FUNCTION✿: The name of tool N
✿ARGS✿: The input of tool N
✿RESULT✿: The result of tool 1
✿RESULT✿: The result of tool 2
...
✿RESULT✿: The result of tool N
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""
CHINESE_PARALLEL = """# 工具

## 你拥有如下工具：

### code_interpreter

code_interpreter: Runs code. 输入参数：{"type": "object", "properties": {}} \
此工具的输入应为Markdown代码块。

## 你可以在回复中插入以下命令以并行调用N个工具：

✿FUNCTION✿: 工具1的名称，必须是[code_interpreter]之一
✿ARGS✿: 工具1的输入
✿FUNCTION✿: 工具2的名称
✿ARGS✿: 工具2的输入
...
✿FUNCTION✿: 工具N的名称
✿ARGS✿: 工具N的输入
✿RESULT✿: 工具1的结果
✿RESULT✿: 工具2的结果
...
✿RESULT✿: 工具N的结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""

Texts = list[tuple[str, str]]


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: tuple[str, str, str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, name, arguments in calls
        ]
    return message


def result(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def texts(messages: list[dict[str, Any]], *tools: Tool, **options: Any) -> Texts:
    made = qwen_agent_prompt(messages, tools, **options).messages
    assert all(message.keys() == {"role", "content"} for message in made)
    return [(message["role"], message["content"]) for message in made]


def test_tools_are_told_of_in_the_system_text() -> None:
    asked = [user("Draw a cat.")]
    assert texts(asked, DRAW, CODE, allows_parallel=False) == [
        ("system", ENGLISH),
        ("user", "Draw a cat."),
    ]
    assert texts(asked, DRAW)[0] == ("system", ENGLISH_PARALLEL)
    assert not qwen_agent_prompt(asked, [DRAW]).continues


def test_a_chinese_text_is_told_in_chinese() -> None:
    asked = [system("Be kind."), user("画一只猫。")]
    assert texts(asked, DRAW, CODE, allows_parallel=False) == [
        ("system", f"Be kind.\n\n{CHINESE}"),
        ("user", "画一只猫。"),
    ]
    asked = [system(""), user("画一只猫。")]
    assert texts(asked, CODE)[0] == ("system", f"\n\n{CHINESE_PARALLEL}")


def test_only_the_system_and_users_choose_the_language() -> None:
    asked = [user("Draw."), assistant("好", ("a", "image_gen", "{}")), result("a", "图")]
    assert texts(asked, DRAW)[0] == ("system", ENGLISH_PARALLEL)
    assert texts([system("好"), *asked], CODE)[0] == ("system", f"好\n\n{CHINESE_PARALLEL}")


SEVERAL = [
    user("Draw a cat and add."),
    assistant(
        "Sure.",
        ("a", "image_gen", '{"提示": "cat"}'),
        ("b", "code_interpreter", "```py\n1+1\n```"),
    ),
    *(result("b", "2"), result("a", "![](u)")),
    assistant(None, ("c", "image_gen", "{}")),
    result("c", ""),
]


def test_calls_and_results_are_one_text_that_is_continued() -> None:
    """The results of one answer stand in the order of their calls, whichever came first."""
    assert texts(SEVERAL, DRAW)[1:] == [
        ("user", "Draw a cat and add."),
        (
            "assistant",
            'Sure.\n✿FUNCTION✿: image_gen\n✿ARGS✿: {"提示": "cat"}\n'
            "✿FUNCTION✿: code_interpreter\n✿ARGS✿: \n```py\n1+1\n```\n"
            "✿RESULT✿: ![](u)\n✿RESULT✿: 2\n✿RETURN✿: \n"
            "✿FUNCTION✿: image_gen\n✿ARGS✿: {}\n✿RESULT✿: \n✿RETURN✿",
        ),
    ]
    assert qwen_agent_prompt(SEVERAL, [DRAW]).continues


def test_an_answer_after_results() -> None:
    conversation = [
        *(user("Draw."), assistant(None, ("a", "image_gen", "{}")), result("a", "![](u)")),
        *(assistant("Here."), user("Again."), assistant("No.")),
    ]
    assert texts(conversation, DRAW)[1:] == [
        ("user", "Draw."),
        ("assistant", "✿FUNCTION✿: image_gen\n✿ARGS✿: {}\n✿RESULT✿: ![](u)\n✿RETURN✿: Here."),
        ("user", "Again."),
        ("assistant", "No."),
    ]
    assert not qwen_agent_prompt(conversation, [DRAW]).continues


def test_without_tools_the_user_tells_of_the_calls() -> None:
    conversation = [
        *(user("Draw."), assistant("Sure.", ("a", "image_gen", "{}")), result("a", "![](u)")),
        *(assistant("Here."), user("And?")),
    ]
    told = (
        '\n\nThe tool "image_gen" was called with these arguments: \n{}'
        "\n\nThe tool has returned the following result: \n![](u)"
    )
    assert texts(conversation) == [
        ("user", "Draw."),
        ("assistant", "Sure."),
        ("user", told),
        ("assistant", "Here."),
        ("user", "And?"),
    ]
    assert not qwen_agent_prompt(conversation[:3], []).continues


def test_without_tools_in_chinese_and_a_question_right_behind() -> None:
    calls = assistant(None, ("a", "image_gen", "{}"), ("b", "image_gen", "[]"))
    assert texts([user("画。"), calls, result("a", "甲"), result("b", "乙"), user("好")]) == [
        (
            "user",
            '画。\n\n工具"image_gen"被调用时使用了以下参数：\n{}'
            '\n\n工具"image_gen"被调用时使用了以下参数：\n[]'
            "\n\n该工具返回了以下结果：\n甲\n\n该工具返回了以下结果：\n乙",
        ),
        ("assistant", "..."),
        ("user", "好"),
    ]


@pytest.mark.parametrize("tools", [[], [DRAW]])
def test_a_result_without_a_call_is_refused(tools: list[Tool]) -> None:
    with pytest.raises(TemplateError, match="has to follow a call"):
        qwen_agent_prompt([user("q"), result("a", "r")], tools)


def test_the_messages_given_stay_as_they_are() -> None:
    before = repr(SEVERAL)
    qwen_agent_prompt(SEVERAL, [DRAW])
    assert repr(SEVERAL) == before
