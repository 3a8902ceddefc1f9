"""Tools and their calls as a ReAct text, for models without tokens for tools.

Source: TOOL_DESC, REACT_INSTRUCTION and parse_messages in openai_api.py of QwenLM/Qwen.
Differs from it where it lost something: the message that tells of the tools is pinned, so that a
long history does not push it out, and calls of one answer stand with their own results.
"""

import json
from collections.abc import Sequence
from typing import Any

from protocol.conversation import PINNED
from protocol.prompt import TemplateError
from protocol.tools.calls import Tool
from protocol.tools.history import Exchange, Message, ends_with_result, exchanges
from protocol.tools.taught import TaughtPrompt

_DESCRIPTION = (
    "{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? "
    "{description} Parameters: {parameters}"
)
_INSTRUCTION = """\
Answer the following questions as best you can. You have access to the following APIs:

{descriptions}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
_THOUGHT = "Thought:"
_ANSWERED = "Thought: I now know the final answer.\nFinal Answer:"


def react_prompt(messages: Sequence[Message], tools: Sequence[Tool]) -> TaughtPrompt:
    """Write tools, calls and results into the texts of a conversation.

    After a result the model continues behind "Thought:". Without tools nothing is said of them,
    answers are their plain text, and after a result the model continues behind "Final Answer:",
    because an answer is all that is left to give; the calls of before stay as they were written.

    Raises:
        TemplateError: a result without a call, or tools but no message of a user.
    """
    merged: list[dict[str, Any]] = []
    for exchange in exchanges(messages):
        if exchange.role != "assistant":
            merged.append({"role": exchange.role, "content": _trimmed(exchange.text)})
            continue
        text = _answer(exchange, is_labelled=bool(tools))
        if merged and merged[-1]["role"] == "assistant":
            merged[-1]["content"] += "\n" + text
        else:
            merged.append({"role": "assistant", "content": text})
    continues = ends_with_result(messages)
    if continues:
        merged[-1]["content"] += "\n" + (_THOUGHT if tools else _ANSWERED)
    if tools:
        _tell_of_tools(merged, tools)
    return TaughtPrompt(merged, continues)


def instruction(tools: Sequence[Tool]) -> str:
    """What the model is told of its tools."""
    return _INSTRUCTION.format(
        descriptions="\n\n".join(_describe(tool) for tool in tools),
        names=", ".join(tool.name for tool in tools),
    )


def _describe(tool: Tool) -> str:
    return _DESCRIPTION.format(
        name=tool.name,
        human=tool.name_for_human or tool.name,
        description=tool.description,
        parameters=json.dumps(tool.parameters, ensure_ascii=False),
    )


def _tell_of_tools(merged: list[dict[str, Any]], tools: Sequence[Tool]) -> None:
    """Before the question of the last turn that the model has answered, or of the first.

    So the format is shown once, and by the answers after it, as in the data it was trained on.
    """
    users = [i for i, message in enumerate(merged) if message["role"] == "user"]
    if not users:
        raise TemplateError("at least one message of a user is needed")
    answered = [i for i in users if i + 1 < len(merged)]
    message = merged[answered[-1] if answered else users[-1]]
    message["content"] = f"{instruction(tools)}\n\nQuestion: {message['content']}"
    message[PINNED] = True


def _answer(exchange: Exchange, *, is_labelled: bool) -> str:
    """An assistant's message and the results of its calls."""
    text = _trimmed(exchange.text)
    if not exchange.calls:
        return f"{_ANSWERED} {text}" if is_labelled else text
    if not text.startswith(_THOUGHT):
        text = f"{_THOUGHT} {text}"
    for call in exchange.calls:
        text += f"\nAction: {call.name}\nAction Input: {call.arguments}"
        if call.result is not None:
            text += f"\nObservation: {_trimmed(call.result)}"
    return text


def _trimmed(text: str) -> str:
    """As openai_api.py does, because the training data was."""
    return text.lstrip("\n").rstrip()
