"""Tools for a model whose prompt format has no place for them: written into the messages.

By the builder of the format that the model is to call them in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.tools.formats import ToolFormat
from protocol.tools.hermes_prompt import hermes_prompt
from protocol.tools.qwen_agent_prompt import qwen_agent_prompt
from protocol.tools.react_prompt import react_prompt
from protocol.tools.request import ToolUse
from protocol.tools.taught import TaughtPrompt

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Teacher:
    """`begun`: what the last message ends with where the model is to go on behind a result."""

    write: Callable[[Messages, ToolUse | None], TaughtPrompt]
    begun: str = ""


_TEACHERS: Mapping[ToolFormat, _Teacher] = {
    ToolFormat.REACT: _Teacher(
        lambda messages, use: react_prompt(messages, use.tools if use else ()), "Thought:"
    ),
    ToolFormat.QWEN_AGENT: _Teacher(
        lambda messages, use: qwen_agent_prompt(
            messages,
            use.tools if use else (),
            allows_parallel=use is None or use.allows_parallel,
        ),
        "✿RETURN✿",
    ),
    ToolFormat.HERMES: _Teacher(
        lambda messages, use: hermes_prompt(messages, use.tools if use else ())
    ),
}
TEACHABLE = frozenset(_TEACHERS)


@dataclass(frozen=True, slots=True)
class Taught:
    """`begun` is what the parser of the answer has to see first, "" for nothing."""

    messages: list[dict[str, Any]]
    continues: bool
    begun: str


def teach(tool_format: ToolFormat, messages: Messages, use: ToolUse | None) -> Taught:
    """Write the tools (None: there are none any more), the calls and the results as text.

    Raises TemplateError where they do not fit together.
    """
    teacher = _TEACHERS[tool_format]
    prompt = teacher.write(messages, use)
    begun = teacher.begun if prompt.continues and use is not None else ""
    return Taught(prompt.messages, prompt.continues, begun)
