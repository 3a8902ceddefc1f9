"""How a model is told of tools and in what format it calls them: found out once, when it is loaded.

`--tool-format` overrides what the chat template shows. Used by server/served_model.py.
"""

from dataclasses import dataclass

from engine.errors import CheckpointError
from protocol.chatglm_format import ChatGLM3Format
from protocol.prompt_format import PromptFormat
from protocol.tools.formats import ToolFormat, find_tool_format
from protocol.tools.teaching import TEACHABLE


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """`is_told`: by the model's own prompt format; otherwise the messages have to teach it."""

    format: ToolFormat = ToolFormat.REACT
    is_told: bool = False


def tool_support(
    prompt_format: PromptFormat | None, template: str | None, chosen: ToolFormat | None
) -> ToolSupport:
    """Raises CheckpointError for a chosen format that this model cannot be told of."""
    own = _own_format(prompt_format, template)
    if chosen is None:
        return ToolSupport() if own is None else ToolSupport(own, is_told=True)
    if chosen == own or (chosen not in TEACHABLE and _reads_tools(prompt_format, template)):
        return ToolSupport(chosen, is_told=True)
    if chosen in TEACHABLE:
        return ToolSupport(chosen)
    raise CheckpointError(
        f"--tool-format {chosen}: the chat template of this model does not tell of tools; only "
        f"{', '.join(sorted(TEACHABLE))} can be taught in the messages"
    )


def _own_format(prompt_format: PromptFormat | None, template: str | None) -> ToolFormat | None:
    if isinstance(prompt_format, ChatGLM3Format):
        return ToolFormat.CHATGLM3
    if template is None or not _reads_tools(prompt_format, template):
        return None
    return find_tool_format(template)


def _reads_tools(prompt_format: PromptFormat | None, template: str | None) -> bool:
    if prompt_format is None or template is None:
        return False
    return "tools" in prompt_format.variables
