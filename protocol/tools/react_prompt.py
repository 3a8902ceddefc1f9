"""Tools and their calls as a ReAct text, for models without tokens for tools.

Source: TOOL_DESC, REACT_INSTRUCTION and parse_messages in openai_api.py of QwenLM/Qwen.
Differs from it where it lost something: the message that tells of the tools is pinned, so that a
long history does not push it out, and calls of one answer stand with their own results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.conversation import PINNED
from protocol.prompt import TemplateError
from protocol.tools.calls import Tool

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
_ANSWERED = "Thought: I now know the final answer.\nFinal Answer: "

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReactPrompt:
    """Messages that a prompt format without tools understands.

    `continues`: the last one is the assistant's, ends in "Thought:" and is to be continued.
    """

    messages: list[dict[str, Any]]
    continues: bool


def react_prompt(messages: Sequence[Message], tools: Sequence[Tool]) -> ReactPrompt:
    """Write tools, calls and results into the texts of a conversation.

    Messages are OpenAI's: calls in `tool_calls` or `function_call`, results in messages of role
    `tool`, with the call's id, or `function`. Raises TemplateError for a result without a call and
    where no user has said anything.
    """
    merged: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        role = message["role"]
        if role in ("tool", "function"):
            raise TemplateError(f"a message of role {role!r} has to follow a call of the assistant")
        if role != "assistant":
            merged.append({"role": role, "content": _text(message)})
            continue
        results = _results(messages, at)
        at += len(results)
        text = _answer(message, results)
        if merged and merged[-1]["role"] == "assistant":
            merged[-1]["content"] += "\n" + text
        else:
            merged.append({"role": "assistant", "content": text})
    continues = bool(messages) and messages[-1]["role"] in ("tool", "function")
    if continues:
        merged[-1]["content"] += "\nThought:"
    _tell_of_tools(merged, tools)
    return ReactPrompt(merged, continues)


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


def _results(messages: Sequence[Message], start: int) -> Sequence[Message]:
    end = start
    while end < len(messages) and messages[end]["role"] in ("tool", "function"):
        end += 1
    return messages[start:end]


def _answer(message: Message, results: Sequence[Message]) -> str:
    """An assistant's message and the results of its calls."""
    calls = _calls(message)
    text = _text(message)
    if len(results) > len(calls):
        raise TemplateError(f"there are {len(results)} results for {len(calls)} calls")
    if not calls:
        return _ANSWERED + text
    if not text.startswith("Thought:"):
        text = f"Thought: {text}"
    by_id = {result["tool_call_id"]: result for result in results if result.get("tool_call_id")}
    in_order = iter([result for result in results if not result.get("tool_call_id")])
    for call_id, name, arguments in calls:
        text += f"\nAction: {name}\nAction Input: {arguments}"
        result = by_id.pop(call_id, None) or next(in_order, None)
        if result is not None:
            text += f"\nObservation: {_text(result)}"
    if by_id:
        raise TemplateError(f"no call of the message before has the id {next(iter(by_id))!r}")
    return text


def _calls(message: Message) -> list[tuple[str | None, str, str]]:
    """Id, name and arguments of each call."""
    calls = [(call.get("id"), call["function"]) for call in message.get("tool_calls") or ()]
    if message.get("function_call"):
        calls.append((None, message["function_call"]))
    return [(call_id, function["name"], function["arguments"]) for call_id, function in calls]


def _text(message: Message) -> str:
    """As openai_api.py does, because the training data was."""
    content: str = message.get("content") or ""
    return content.lstrip("\n").rstrip()
