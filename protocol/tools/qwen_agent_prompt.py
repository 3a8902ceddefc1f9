"""Tools and their calls in Qwen-Agent's own format, for models that learnt no other.

Owns the texts that qwen_agent.py reads back. Without tools, earlier calls become the user's words,
so that the model does not write another.

Source: qwen_fncall_prompt.py and function_calling.py of QwenLM/Qwen-Agent, version 0.0.34.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from protocol.tools.calls import Tool
from protocol.tools.history import Exchange, Message, ends_with_result, exchanges, text_of
from protocol.tools.taught import TaughtPrompt

_NAME, _ARGUMENTS = "✿FUNCTION✿", "✿ARGS✿"
_RESULT, _RETURN = "✿RESULT✿", "✿RETURN✿"
_REPLY = f"\n{_RETURN}: "

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ENDING = {
    "en": f"{_RETURN}: Reply based on tool results. Images need to be rendered as ![](url)",
    "zh": f"{_RETURN}: 根据工具结果进行回复，需将图片用![](url)渲染出来",
}
_TOOLS = {
    "en": "# Tools\n\n## You have access to the following tools:",
    "zh": "# 工具\n\n## 你拥有如下工具：",
}
_ONE_CALL = {
    "en": f"""\
## When you need to call a tool, please insert the following command in your reply, which can be \
called zero or multiple times according to your needs:

{_NAME}: The tool to use, should be one of [{{names}}]
{_ARGUMENTS}: The input of the tool
{_RESULT}: Tool results
{_ENDING["en"]}""",
    "zh": f"""\
## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

{_NAME}: 工具名称，必须是[{{names}}]之一。
{_ARGUMENTS}: 工具输入
{_RESULT}: 工具结果
{_ENDING["zh"]}""",
}
_PARALLEL_CALLS = {
    "en": f"""\
## Insert the following command in your reply when you need to call N tools in parallel:

{_NAME}: The name of tool 1, should be one of [{{names}}]
{_ARGUMENTS}: The input of tool 1
{_NAME}: The name of tool 2
{_ARGUMENTS}: The input of tool 2
...
{_NAME}: The name of tool N
{_ARGUMENTS}: The input of tool N
{_RESULT}: The result of tool 1
{_RESULT}: The result of tool 2
...
{_RESULT}: The result of tool N
{_ENDING["en"]}""",
    "zh": f"""\
## 你可以在回复中插入以下命令以并行调用N个工具：

{_NAME}: 工具1的名称，必须是[{{names}}]之一
{_ARGUMENTS}: 工具1的输入
{_NAME}: 工具2的名称
{_ARGUMENTS}: 工具2的输入
...
{_NAME}: 工具N的名称
{_ARGUMENTS}: 工具N的输入
{_RESULT}: 工具1的结果
{_RESULT}: 工具2的结果
...
{_RESULT}: 工具N的结果
{_ENDING["zh"]}""",
}
_PARAMETERS = {"en": "Parameters", "zh": "输入参数"}
_COLON = {"en": ": ", "zh": "："}
_JSON_INPUT = {
    "en": "Format the arguments as a JSON object.",
    "zh": "此工具的输入应为JSON对象。",
}
_CODE_INPUT = {
    "en": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
    "zh": "此工具的输入应为Markdown代码块。",
}
_TOLD_CALL = {
    "en": '\n\nThe tool "{name}" was called with these arguments: \n{arguments}',
    "zh": '\n\n工具"{name}"被调用时使用了以下参数：\n{arguments}',
}
_TOLD_RESULT = {
    "en": "\n\nThe tool has returned the following result: \n",
    "zh": "\n\n该工具返回了以下结果：\n",
}


def qwen_agent_prompt(
    messages: Sequence[Message], tools: Sequence[Tool], *, allows_parallel: bool = True
) -> TaughtPrompt:
    """Write tools, calls and results into the texts of a conversation.

    The tools are told of at the end of the system text, in Chinese if there is a Chinese character
    in any text of the system or a user. After a result the model continues behind "✿RETURN✿"; its
    ": " is left to the model, because it may be one token with what follows.

    Raises:
        TemplateError: a result without a call.
    """
    language = _language(messages)
    if not tools:
        return TaughtPrompt(_told_by_the_user(messages, language), continues=False)
    merged: list[dict[str, Any]] = []
    for exchange in exchanges(messages):
        follows = bool(merged) and merged[-1]["role"] == "assistant"
        if exchange.role != "assistant":
            merged.append({"role": exchange.role, "content": exchange.text})
        elif follows:
            merged[-1]["content"] += _answer(exchange, is_begun=True)
        else:
            merged.append({"role": "assistant", "content": _answer(exchange, is_begun=False)})
    continues = ends_with_result(messages)
    if continues:
        merged[-1]["content"] = merged[-1]["content"].removesuffix(": ")
    told = _instruction(tools, language, allows_parallel)
    if merged and merged[0]["role"] == "system":
        merged[0]["content"] += f"\n\n{told}"
    else:
        merged.insert(0, {"role": "system", "content": told})
    return TaughtPrompt(merged, continues)


def _language(messages: Sequence[Message]) -> str:
    read = (text_of(message) for message in messages if message["role"] in ("system", "user"))
    return "zh" if any(_CHINESE.search(text) for text in read) else "en"


def _instruction(tools: Sequence[Tool], language: str, allows_parallel: bool) -> str:
    descriptions = [_describe(tool, language) for tool in tools]
    how = (_PARALLEL_CALLS if allows_parallel else _ONE_CALL)[language]
    names = ",".join(tool.name for tool in tools)
    return "\n\n".join([_TOOLS[language], *descriptions, how.replace("{names}", names)])


def _describe(tool: Tool, language: str) -> str:
    parameters = json.dumps(tool.parameters, ensure_ascii=False)
    what = (_CODE_INPUT if tool.name == "code_interpreter" else _JSON_INPUT)[language]
    return (
        f"### {tool.name_for_human or tool.name}\n\n{tool.name}: {tool.description} "
        f"{_PARAMETERS[language]}{_COLON[language]}{parameters} {what}"
    )


def _answer(exchange: Exchange, *, is_begun: bool) -> str:
    """An assistant's message and the results of its calls; `is_begun`: behind another of its."""
    text = exchange.text
    for call in exchange.calls:
        line_break = "\n" if text or is_begun else ""
        # a line break before a code block, so that it is one in Markdown
        arguments = ("\n" if call.arguments.startswith("```") else "") + call.arguments
        text += f"{line_break}{_NAME}: {call.name}\n{_ARGUMENTS}: {arguments}"
    results = [call.result for call in exchange.calls if call.result is not None]
    for result in results:
        text += f"\n{_RESULT}: {result}"
    return text + _REPLY if results else text


def _told_by_the_user(messages: Sequence[Message], language: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for exchange in exchanges(messages):
        if not exchange.calls or exchange.text:
            if exchange.role == "user" and told and told[-1]["role"] == "user":
                # so that the model answers the second one, and not what the tools said
                told.append({"role": "assistant", "content": "..."})
            told.append({"role": exchange.role, "content": exchange.text})
        if exchange.calls:
            if not told or told[-1]["role"] != "user":
                told.append({"role": "user", "content": ""})
            told[-1]["content"] += _as_told(exchange, language)
    return told


def _as_told(exchange: Exchange, language: str) -> str:
    results = [call.result for call in exchange.calls if call.result is not None]
    return "".join(
        [_TOLD_CALL[language].format(name=c.name, arguments=c.arguments) for c in exchange.calls]
        + [_TOLD_RESULT[language] + result for result in results]
    )
