"""Tools, calls and results as ChatGLM3 writes them; chatglm3.py reads its calls back.

Source: build_chat_input in tokenization_chatglm.py and process_response in modeling_chatglm.py of
THUDM/chatglm3-6b; PROMPT.md and the demos of THUDM/ChatGLM3 for the system text and the history.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NoReturn

from protocol.conversation import METADATA
from protocol.prompt import TemplateError
from protocol.tools.history import Message, PastCall, exchanges

_TOLD = "Answer the following questions as best as you can. You have access to the following tools:"
_KEYS = ("name", "description", "parameters")


def system_text(given: str | None, tools: Sequence[Mapping[str, Any]]) -> str:
    """The system text with OpenAI's `tools`, which ChatGLM3 knows without what is around them.

    A text of the client's own stands first, with an empty line after it; the authors' demos would
    drop it. Where it ends with the sentence that tells of tools, as theirs does, nothing is added.

    Raises:
        TemplateError: a tool that is no function.
    """
    listed = json.dumps([_function(tool) for tool in tools], indent=4, ensure_ascii=False)
    if not given:
        return f"{_TOLD}\n{listed}"
    told = given if given.endswith(_TOLD) else f"{given}\n\n{_TOLD}"
    return f"{told}\n{listed}"


def with_calls_written(messages: Sequence[Message]) -> list[Message]:
    """Each call as a message of its own, and its result as an observation behind it.

    What the assistant said before its calls is a message before them, as in PROMPT.md.

    Raises:
        TemplateError: a result without a call.
    """
    written: list[Message] = []
    for exchange in exchanges(messages):
        if not exchange.calls:
            written.append(exchange.message)
            continue
        if exchange.text:
            written.append({"role": "assistant", "content": exchange.text})
        for call in exchange.calls:
            written.append({"role": "assistant", METADATA: call.name, "content": _code(call)})
            if call.result is not None:
                written.append({"role": "observation", "content": call.result})
    return written


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise TemplateError("this model's chat format takes tools of type 'function' only")
    return {key: function[key] for key in _KEYS if key in function}


def _code(call: PastCall) -> str:
    return f"```python\ntool_call({_keywords(call.arguments)})\n```"


def _keywords(arguments: str) -> str:
    """The arguments of a call, JSON text, as Python's arguments by name.

    A name that cannot be one in Python stands in a dict behind **, which means the same to the
    eval() of the authors' code; one that is a word of Python's own, as `from`, stays a name. What
    is no JSON object stays as it is: chatglm3.py hands out what it cannot read between the
    parentheses, so this is what the model wrote there.
    """
    try:
        values = json.loads(arguments, parse_constant=_refuse, parse_float=_finite)
        if not isinstance(values, dict):
            return arguments
        written = [f"{name}={value!r}" for name, value in values.items() if name.isidentifier()]
        others = {name: value for name, value in values.items() if not name.isidentifier()}
        return ", ".join([*written, f"**{others!r}"] if others else written)
    except (ValueError, RecursionError):
        return arguments


def _finite(text: str) -> float:
    return float(text) if isfinite(float(text)) else _refuse(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no literal of Python")
