"""The format that a template shows: by excerpts of the published chat templates."""

import pytest

from protocol.tools.calls import CallArguments, CallBegin, Content, joined
from protocol.tools.formats import FORMATS, ToolFormat, find_tool_format
from tests.protocol.tools.parsing import TOOLS

QWEN1_5 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5 = r"""{%- if tools %}
    {{- "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" }}
    {{- "You are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and " }}
    {{- "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": " }}
    {{- "<function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- endif %}
{{- '\n<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}"""
QWEN3_CODER = r"""{%- if tools is iterable and tools | length > 0 %}
    {{- "\n\n# Tools\n\nYou have access to the following functions:\n\n" }}
    {{- "<tools>" }}
    {{- '\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:' }}
    {{- '\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\n' }}
    {{- 'value_1\n</parameter>\n</function>\n</tool_call>' }}
{%- endif %}"""
LLAMA3_1 = r"""{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name ' }}
{{- "<|python_tag|>" + tool_call.name + ".call(" }}"""
LLAMA3_2 = r"""{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name ' }}
{%- elif message.role == "tool" or message.role == "ipython" %}"""
BIELIK = (
    '{{- \'użyj formatu <tool_call>{"name": "nazwa_narzędzia", '
    '"arguments": {"argument": "wartość"}}</tool_call>.\' }}'
)
# Templates that share texts with others, and whose calls nobody here can read.
GLM4_6 = r"""# Tools
You are provided with function signatures within <tools></tools> XML tags:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
</tool_call>{{ '\n<tool_call>' + tc.name }}{% set _args = tc.arguments %}"""
SEED_OSS = r"""{%- set toolcall_begin_token   = '<seed:tool_call>' -%}
{{ "<seed:tool_call>\n<function=example>\n<parameter=example_parameter_1>value_1</parameter>" }}"""
FUNCTIONARY = r"""{{- "Environment: ipython\n\n" }}{{ '<|python_tag|>' }}
{{- 'start_tag => `<function`\nparameters => a JSON dict' }}
{{ '<function=' + tool_call['function']['name'] + '>' }}"""
MINIMAX_M1 = r"""{{ '<tools>\n<tool_calls>\n' }}{%- elif message.role == "ipython" %}"""
QWEN_AGENT = "{{ '✿FUNCTION✿: 工具名称，必须是[' + names + ']之一。\n✿ARGS✿: 工具输入\n' }}"


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        (QWEN1_5, None),
        (QWEN2_5, ToolFormat.HERMES),
        (QWEN3_CODER, ToolFormat.QWEN3_CODER),
        (LLAMA3_1, ToolFormat.LLAMA3),
        (LLAMA3_2, ToolFormat.LLAMA3),
        (QWEN_AGENT, ToolFormat.QWEN_AGENT),
        (BIELIK, ToolFormat.HERMES),
        (GLM4_6, None),
        (SEED_OSS, None),
        (FUNCTIONARY, None),
        (MINIMAX_M1, None),
        ("", None),
    ],
)
def test_a_template_shows_its_format(template: str, tool_format: ToolFormat | None) -> None:
    assert find_tool_format(template) is tool_format


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        (ToolFormat.HERMES, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        (ToolFormat.QWEN3_CODER, "<tool_call>\n<function=now>\n</function>\n</tool_call>"),
        (ToolFormat.CHATGLM3, "now\n ```python\ntool_call()\n```"),
        (ToolFormat.LLAMA3, '{"name": "now", "parameters": {}}'),
        (ToolFormat.QWEN_AGENT, "✿FUNCTION✿: now\n✿ARGS✿: {}\n"),
        (ToolFormat.REACT, "Thought:\nAction: now\nAction Input: {}\n"),
    ],
)
def test_every_format_has_its_parser(tool_format: ToolFormat, text: str) -> None:
    parser = FORMATS[tool_format].parser(TOOLS)
    events = joined(parser.feed(text) + parser.flush())
    assert events == [CallBegin("now"), CallArguments("{}")]


@pytest.mark.parametrize("tool_format", ToolFormat)
def test_without_tools_nothing_is_a_call(tool_format: ToolFormat) -> None:
    text = 'a\n<tool_call>{"name": "now"}</tool_call>\nnow\n```\ntool_call()\nAction: now\n✿ARGS✿ b'
    parser = FORMATS[tool_format].parser([])
    assert joined(parser.feed(text) + parser.flush()) == [Content(text)]
