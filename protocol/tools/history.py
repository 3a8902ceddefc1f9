"""The calls in a conversation, and the results that belong to them.

For whatever writes both as text: react_prompt, qwen_agent_prompt, hermes_prompt and chatglm_format.
Knows no format. Messages are OpenAI's: calls in `tool_calls` or `function_call`, results in
messages of role `tool`, with the call's id or in the order of the calls, or `function`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.prompt import TemplateError

Message = Mapping[str, Any]
RESULT_ROLES = ("tool", "function")


@dataclass(frozen=True, slots=True)
class PastCall:
    """A call that the assistant has made; `result` is None where none has come."""

    name: str
    arguments: str  # JSON, or what the model wrote in its place
    result: str | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message, and what came of it if it calls tools."""

    message: Message
    calls: tuple[PastCall, ...]
    results: tuple[Message, ...]  # in the order they came in

    @property
    def role(self) -> str:
        role: str = self.message["role"]
        return role

    @property
    def text(self) -> str:
        return text_of(self.message)


def exchanges(messages: Sequence[Message]) -> Iterator[Exchange]:
    """All messages in order, the results with the calls that they belong to.

    Raises:
        TemplateError: a result without a call.
    """
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        role = message.get("role")
        if role in RESULT_ROLES:
            raise TemplateError(f"a message of role {role!r} has to follow a call of the assistant")
        if role != "assistant":
            yield Exchange(message, (), ())
            continue
        results = _results(messages, at)
        at += len(results)
        yield Exchange(message, tuple(_paired(message, results)), tuple(results))


def ends_with_result(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[-1]["role"] in RESULT_ROLES


def text_of(message: Message) -> str:
    content: str | None = message.get("content")
    return content or ""


def _results(messages: Sequence[Message], start: int) -> Sequence[Message]:
    end = start
    while end < len(messages) and messages[end].get("role") in RESULT_ROLES:
        end += 1
    return messages[start:end]


def _paired(message: Message, results: Sequence[Message]) -> Iterator[PastCall]:
    """Each call with the result of its id, or else with the next of those that have no id."""
    calls = _calls(message)
    if len(results) > len(calls):
        raise TemplateError(f"there are {len(results)} results for {len(calls)} calls")
    by_id: dict[str, list[Message]] = {}
    for result in results:
        by_id.setdefault(result.get("tool_call_id") or "", []).append(result)
    in_order = by_id.pop("", [])
    for call_id, function in calls:
        own = by_id.get(call_id or "") or in_order
        text = text_of(own.pop(0)) if own else None
        yield PastCall(function["name"], function["arguments"], text)
    left = [call_id for call_id, unused in by_id.items() if unused]
    if left and any(call_id == left[0] for call_id, _ in calls):
        raise TemplateError(f"there is more than one result for the call {left[0]!r}")
    if left:
        raise TemplateError(f"no call of the message before has the id {left[0]!r}")


def _calls(message: Message) -> list[tuple[str | None, Message]]:
    """Id and function of each call."""
    calls = [(call.get("id"), call["function"]) for call in message.get("tool_calls") or ()]
    if message.get("function_call"):
        calls.append((None, message["function_call"]))
    return calls
