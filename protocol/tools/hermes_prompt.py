"""Tools and their calls in the format of Nous Hermes, for a chat template that knows no tools.

Owns the texts that hermes.py reads back. A prompt is what Qwen2.5's template makes of the same
conversation, but for its default system text.

Source: the chat template of Qwen2.5.
"""

import json
from collections.abc import Sequence
from typing import Any

from protocol.tools.calls import Tool
from protocol.tools.history import Exchange, Message, exchanges, text_of
from protocol.tools.taught import TaughtPrompt

_INSTRUCTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def hermes_prompt(messages: Sequence[Message], tools: Sequence[Tool]) -> TaughtPrompt:
    """Write tools, calls and results into the texts of a conversation.

    The tools are told of at the end of the system text. The results of one answer are one message
    of the user, in the order they came in, and nothing is to be continued.

    Raises:
        TemplateError: a result without a call.
    """
    written: list[dict[str, Any]] = []
    for exchange in exchanges(messages):
        written.append({"role": exchange.role, "content": _text(exchange)})
        if exchange.results:
            results = [f"<tool_response>\n{text_of(m)}\n</tool_response>" for m in exchange.results]
            written.append({"role": "user", "content": "\n".join(results)})
    if tools and written and written[0]["role"] == "system":
        written[0]["content"] += f"\n\n{_instruction(tools)}"
    elif tools:
        written.insert(0, {"role": "system", "content": _instruction(tools)})
    return TaughtPrompt(written, continues=False)


def _instruction(tools: Sequence[Tool]) -> str:
    signatures = [json.dumps(tool.definition, ensure_ascii=False) for tool in tools]
    return _INSTRUCTION.format(signatures="\n".join(signatures))


def _text(exchange: Exchange) -> str:
    calls = [
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {_as_template(call.arguments)}}}\n'
        "</tool_call>"
        for call in exchange.calls
    ]
    return "\n".join([exchange.text, *calls] if exchange.text or not calls else calls)


def _as_template(arguments: str) -> str:
    """JSON with the spaces that a template writes; as it is where it is no JSON.

    So is JSON with half a character, which could not be written out as one.
    """
    try:
        text = json.dumps(json.loads(arguments), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return arguments
    return text
