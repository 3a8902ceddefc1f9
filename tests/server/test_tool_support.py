"""How a model is told of tools: what its prompt format shows, and what an operator chooses."""

from functools import cache

import pytest

from engine.errors import CheckpointError
from protocol.chatglm_format import ChatGLM2Format, ChatGLM3Format
from protocol.prompt import ChatTemplate
from protocol.prompt_format import PromptFormat
from protocol.qwen_format import QwenFormat
from protocol.tools.formats import ToolFormat
from server.served_model import ModelText
from server.tool_support import ToolSupport, tool_support
from tests.protocol.test_built_in_formats import CHATGLM, ROLES, baichuan, glm
from tests.server.small_app import byte_tokenizer, small_state
from tests.server.tool_app import plain_tokenizer

# What the templates of models show of their format, in a comment: here only the texts count.
TEMPLATES = {
    "hermes": '{{ tools }}{# <tools> <tool_call> "arguments": #}',
    "qwen3_coder": "{{ tools }}{# <tool_call> <function= <parameter= #}",
    "llama3": '{{ tools }}{# ipython "parameters": #}',
    "qwen_agent": "{{ tools }}{# ✿FUNCTION✿ #}",
    "unknown": "{{ tools }}{# a format that nobody here knows #}",
    "none": '{{ messages }}{# <tools> <tool_call> "arguments": #}',  # of text, not of tools
}


@cache
def built_in(name: str) -> PromptFormat:
    if name == "qwen":
        return QwenFormat(plain_tokenizer(), 6144)
    if name == "baichuan":
        return baichuan()
    return (
        ChatGLM3Format(glm(*CHATGLM, *ROLES))
        if name == "chatglm3"
        else ChatGLM2Format(glm(*CHATGLM))
    )


def support(model: str, chosen: ToolFormat | None) -> ToolSupport:
    if model == "base":
        return tool_support(None, None, chosen)
    source = TEMPLATES.get(model)
    if source is None:
        return tool_support(built_in(model), None, chosen)
    return tool_support(ChatTemplate(source, byte_tokenizer()), source, chosen)


TAUGHT = {"hermes", "qwen_agent", "react"}
TOLD = {"hermes", "qwen3_coder", "llama3", "qwen_agent"}  # by a template of their own


@pytest.mark.parametrize("model", [*TEMPLATES, "qwen", "baichuan", "chatglm2", "chatglm3", "base"])
def test_without_a_choice_the_prompt_format_decides(model: str) -> None:
    is_told = model in TOLD or model == "chatglm3"
    expected = ToolSupport(ToolFormat(model if is_told else "react"), is_told=is_told)
    assert support(model, None) == expected


@pytest.mark.parametrize("chosen", ToolFormat)
@pytest.mark.parametrize("model", [name for name in TEMPLATES if name != "none"])
def test_a_template_that_tells_of_tools_goes_with_every_choice(
    model: str, chosen: ToolFormat
) -> None:
    """A format that the template does not show is taught where it can be, beside the template."""
    is_told = chosen == model or chosen not in TAUGHT
    assert support(model, chosen) == ToolSupport(chosen, is_told=is_told)


@pytest.mark.parametrize("chosen", ToolFormat)
@pytest.mark.parametrize("model", ["none", "qwen", "baichuan", "chatglm2", "chatglm3", "base"])
def test_a_model_without_a_place_for_tools(model: str, chosen: ToolFormat) -> None:
    if chosen in TAUGHT:
        assert support(model, chosen) == ToolSupport(chosen, is_told=False)
    elif chosen == model == "chatglm3":
        assert support(model, chosen) == ToolSupport(chosen, is_told=True)
    else:
        with pytest.raises(CheckpointError) as raised:
            support(model, chosen)
        assert str(raised.value) == (
            f"--tool-format {chosen.value}: the chat template of this model does not tell of "
            "tools; only hermes, qwen_agent, react can be taught in the messages"
        )


def test_where_nothing_is_known() -> None:
    assert ToolSupport() == ToolSupport(ToolFormat.REACT, is_told=False)
    assert small_state().model.tools == ToolSupport()
    assert ModelText(byte_tokenizer(), None).tools == ToolSupport()
