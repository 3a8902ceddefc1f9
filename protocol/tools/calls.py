"""What a tool call parser makes of generated text: the ToolCallParser Protocol and its events.

One parser for each format of tool calls (hermes.py, react.py, ...), a fresh one for each choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # a JSON Schema of an object
    strict: bool = False  # the arguments of every call satisfy `parameters`
    name_for_human: str | None = None  # of ReAct prompts; None: the name

    @property
    def definition(self) -> dict[str, Any]:
        """As OpenAI has it, which is what chat templates write into the prompt."""
        function = {"name": self.name, "description": self.description}
        if not self.description:
            del function["description"]
        return {"type": "function", "function": {**function, "parameters": self.parameters}}


@dataclass(frozen=True, slots=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool that was offered; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments, as JSON text, of the call that began last."""

    text: str


ToolEvent = Content | CallBegin | CallArguments


class ToolCallParser(Protocol):
    """Fed with one choice's text as it comes; holds back only what may still become a marker.

    Never raises, whatever the model wrote. All splits of a text give the same events, once
    neighbours of one kind are joined. No text is lost: what turns out to be no call, as one of an
    unknown tool, is content with all its markers. What has begun as a call stays one: its
    arguments end with the call's markers or with the text.
    """

    def feed(self, text: str) -> list[ToolEvent]:
        """What is certain after `text`."""
        ...

    def flush(self) -> list[ToolEvent]:
        """The end of the output: what was held is settled. Nothing may be fed after it."""
        ...


def joined(events: list[ToolEvent]) -> list[ToolEvent]:
    """Neighbouring contents and neighbouring arguments as one."""
    result: list[ToolEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Content) and isinstance(last, Content):
            result[-1] = Content(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            result[-1] = CallArguments(last.text + event.text)
        else:
            result.append(event)
    return result
