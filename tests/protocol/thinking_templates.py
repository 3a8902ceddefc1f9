"""Chat templates and a tokenizer of the kinds that thinking models have.

Written for these tests from what Qwen documents of its own: ALWAYS prompts as Qwen3-2507 Thinking
(the prompt opens thinking), HYBRID as the first Qwen3 (enable_thinking, thinking of earlier rounds
left out). Compared with the published templates outside this repository.
"""

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from protocol.library_tokenizer import LibraryTokenizer
from protocol.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"

_CONVERSATION = r"""
{%- macro call(one) -%}
{%- set f = one.function or one -%}
<tool_call>{{ "\n" }}{"name": "{{ f.name }}", "arguments": {{
    f.arguments if f.arguments is string else f.arguments | tojson }}}{{ "\n" }}</tool_call>
{%- endmacro -%}

{%- set head = messages[0].content if messages[0].role == "system" else none -%}
{%- if tools -%}
    {{ "<|im_start|>system\n" }}{{ head + "\n\n" if head is string }}
    {{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" }}
    {{- "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n" }}
    {%- for tool in tools %}{{ tool | tojson }}{{ "\n" }}{% endfor -%}
    {{- "</tools>\n\nFor each function call, return a json object with function name and " }}
    {{- "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n" }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif head is string -%}
    {{ "<|im_start|>system\n" + head + "<|im_end|>\n" }}
{%- endif -%}

{%- set at = namespace(place=-1) -%}
{%- for m in messages -%}
    {%- if m.role == "user" and m.content is string and not (
            m.content.startswith("<tool_response>") and m.content.endswith("</tool_response>")) -%}
        {%- set at.place = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- if at.place < 0 %}{% set at.place = messages | length - 1 %}{% endif -%}

{%- for m in messages -%}
    {%- set text = m.content if m.content is string else "" -%}
    {%- if m.role == "tool" -%}
        {{ "<|im_start|>user" if loop.first or loop.previtem.role != "tool" }}
        {{- "\n<tool_response>\n" + text + "\n</tool_response>" }}
        {{- "<|im_end|>\n" if loop.last or loop.nextitem.role != "tool" }}
    {%- elif m.role == "user" or (m.role == "system" and not loop.first) -%}
        {{ "<|im_start|>" + m.role + "\n" + text + "<|im_end|>\n" }}
    {%- elif m.role == "assistant" -%}
        {%- set answer = namespace(text=text, thought="") -%}
        {%- if m.reasoning_content is string -%}
            {%- set answer.thought = m.reasoning_content -%}
        {%- elif "</think>" in text -%}
            {%- set before = text.split("</think>")[0].rstrip("\n") -%}
            {%- set answer.thought = before.split("<think>")[-1].lstrip("\n") -%}
            {%- set answer.text = text.split("</think>")[-1].lstrip("\n") -%}
        {%- endif -%}
        {{ "<|im_start|>assistant\n" }}
        {%- if loop.index0 > at.place and (loop.last or answer.thought) -%}
            {{ "<think>\n" + answer.thought.strip("\n") + "\n</think>\n\n" }}
            {{- answer.text.lstrip("\n") }}
        {%- else -%}
            {{ answer.text }}
        {%- endif -%}
        {%- for one in m.tool_calls or [] -%}
            {{ "\n" if answer.text or not loop.first }}{{ call(one) }}
        {%- endfor -%}
        {{ "<|im_end|>\n" }}
    {%- endif -%}
{%- endfor -%}
"""

ALWAYS = (
    _CONVERSATION
    + r"""
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n<think>\n" }}{% endif -%}
"""
)
HYBRID = (
    _CONVERSATION
    + r"""
{%- if add_generation_prompt -%}
    {{ "<|im_start|>assistant\n" }}
    {{- "<think>\n\n</think>\n\n" if enable_thinking is defined and not enable_thinking }}
{%- endif -%}
"""
)
EFFORT = "{{ reasoning_effort | default('medium') }}" + HYBRID
NEVER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def thinking_tokenizer(*, has_markers: bool = True, is_special: bool = False) -> Tokenizer:
    """One id for each byte, the ChatML tokens and, if wanted, the markers of thinking."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = (IM_START, IM_END)
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    if has_markers:
        markers = ("<think>", "</think>")
        added = [AddedToken(text, normalized=False, special=is_special) for text in markers]
        (backend.add_special_tokens if is_special else backend.add_tokens)(added)
    return LibraryTokenizer.from_json(backend.to_str(), {"eos_token": IM_END})
