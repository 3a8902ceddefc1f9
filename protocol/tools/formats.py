"""The formats of tool calls, what each consists of, and which one a model writes.

A model writes the format that its chat template shows it. The first templates show none: then the
prompt has to teach one (taught.py), ReAct unless the operator chooses another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from protocol.tools.answer_grammar import AnswerRules
from protocol.tools.calls import Tool, ToolCallParser
from protocol.tools.chatglm3 import ChatGLM3Parser
from protocol.tools.chatglm3_grammar import chatglm3_grammar
from protocol.tools.hermes import HermesParser
from protocol.tools.hermes_grammar import hermes_grammar
from protocol.tools.llama3 import Llama3Parser, llama3_grammar
from protocol.tools.qwen3_coder import Qwen3CoderParser
from protocol.tools.qwen3_coder_grammar import qwen3_coder_grammar
from protocol.tools.qwen_agent import QwenAgentParser, qwen_agent_grammar
from protocol.tools.react import ReactParser, react_grammar


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


@dataclass(frozen=True, slots=True)
class FormatParts:
    """What a format consists of.

    Attributes:
        parser: a fresh one for each choice.
        grammar: the Lark of an answer; raises NoGrammar.
        is_json: a call begins as JSON, like an answer by a schema.
        ends: texts that end something in the grammar that brackets and quotes do not.
        stops: stop strings: behind them a model without a result makes one up.
        markers: control tokens of some models that the parser reads as text.
    """

    parser: _MakeParser
    grammar: Callable[[AnswerRules], str]
    is_json: bool = False
    ends: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()


FORMATS: Mapping[ToolFormat, FormatParts] = {
    ToolFormat.HERMES: FormatParts(
        HermesParser, hermes_grammar, markers=("<tool_call>", "</tool_call>")
    ),
    ToolFormat.QWEN3_CODER: FormatParts(
        Qwen3CoderParser,
        qwen3_coder_grammar,
        ends=("\n</parameter>\n",),
        markers=("<tool_call>", "</tool_call>"),
    ),
    ToolFormat.CHATGLM3: FormatParts(ChatGLM3Parser, chatglm3_grammar, markers=("<|assistant|>",)),
    ToolFormat.LLAMA3: FormatParts(
        Llama3Parser, llama3_grammar, is_json=True, markers=("<|python_tag|>",)
    ),
    ToolFormat.QWEN_AGENT: FormatParts(
        QwenAgentParser, qwen_agent_grammar, stops=("✿RESULT✿", "✿RETURN✿")
    ),
    ToolFormat.REACT: FormatParts(
        ReactParser, react_grammar, ends=("\n",), stops=("\nObservation:", "\nObservation：")
    ),
}

# Texts that only templates for one format have; of several, the first. What GLM-4.6 has between
# the markers of Hermes is no JSON; Bielik tells of its tools in other words. ChatGLM3 has no
# template, its family decides.
_SIGNS: Sequence[tuple[ToolFormat, tuple[str, ...]]] = (
    (ToolFormat.QWEN3_CODER, ("<tool_call>", "<function=", "<parameter=")),
    (ToolFormat.HERMES, ("<tool_call>", "<tools>", '"arguments": ')),
    (ToolFormat.HERMES, ("<tool_call>{", '"arguments": ')),
    (ToolFormat.QWEN_AGENT, ("✿FUNCTION✿",)),
    (ToolFormat.LLAMA3, ("ipython", '"parameters": ')),
)


def find_tool_format(template_source: str) -> ToolFormat | None:
    """The format that a chat template shows its model; None where it shows none that we know."""
    for tool_format, signs in _SIGNS:
        if all(sign in template_source for sign in signs):
            return tool_format
    return None
