"""The formats of tool calls, and which one a model writes.

A model writes the format that its chat template shows it. The first templates show none: then the
prompt has to teach ReAct.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from protocol.tools.calls import Tool, ToolCallParser
from protocol.tools.chatglm3 import ChatGLM3Parser
from protocol.tools.hermes import HermesParser
from protocol.tools.llama3 import Llama3Parser
from protocol.tools.qwen3_coder import Qwen3CoderParser
from protocol.tools.qwen_agent import QwenAgentParser
from protocol.tools.react import ReactParser


class ToolFormat(StrEnum):
    """How a model writes its calls."""

    HERMES = "hermes"
    QWEN3_CODER = "qwen3_coder"
    CHATGLM3 = "chatglm3"
    LLAMA3 = "llama3"
    QWEN_AGENT = "qwen_agent"
    REACT = "react"


class _MakeParser(Protocol):
    def __call__(self, tools: Sequence[Tool]) -> ToolCallParser: ...


_PARSERS: Mapping[ToolFormat, _MakeParser] = {
    ToolFormat.HERMES: HermesParser,
    ToolFormat.QWEN3_CODER: Qwen3CoderParser,
    ToolFormat.CHATGLM3: ChatGLM3Parser,
    ToolFormat.LLAMA3: Llama3Parser,
    ToolFormat.QWEN_AGENT: QwenAgentParser,
    ToolFormat.REACT: ReactParser,
}

# Texts that only templates for one format have; of several, the first. A template of Qwen3-Coder
# has those of Hermes too. ChatGLM3 has no template, its family decides.
_SIGNS: Sequence[tuple[ToolFormat, tuple[str, ...]]] = (
    (ToolFormat.QWEN3_CODER, ("<function=",)),
    (ToolFormat.HERMES, ("<tool_call>", "<tools>")),
    (ToolFormat.QWEN_AGENT, ("✿FUNCTION✿",)),
    (ToolFormat.LLAMA3, ("<|python_tag|>",)),
    (ToolFormat.LLAMA3, ("ipython",)),
)


def find_tool_format(template_source: str) -> ToolFormat:
    """The format that a chat template shows its model; REACT where it shows none that we know."""
    for tool_format, signs in _SIGNS:
        if all(sign in template_source for sign in signs):
            return tool_format
    return ToolFormat.REACT


def create_parser(tool_format: ToolFormat, tools: Sequence[Tool]) -> ToolCallParser:
    """A fresh parser for one choice."""
    return _PARSERS[tool_format](tools)
