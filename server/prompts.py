"""Messages and texts into prompt token ids, with the tools of a request where there are any.

Pure and thread-safe: long prompts are encoded off the event loop. Used by server/chat_plan.py,
server/convert.py and the tokenize route.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.chat_messages import Message
from protocol.errors import InvalidRequest, NotFound
from protocol.prompt import ChatTemplate, TemplateError
from protocol.tools.conversation import has_tool_messages
from protocol.tools.request import ToolUse
from protocol.tools.teaching import teach
from server.state import ServedModel

_TEMPLATE_ARGUMENTS = frozenset(
    {
        *("self", "messages", "tools", "add_generation_prompt"),
        *("continue_final_message", "bos_token", "eos_token"),
    }
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a conversation becomes.

    Attributes:
        begun: what its last line already has of an answer with tools, for the parser.
        is_continued: it ends in an answer of before, not in a new one; the model does not think.
    """

    token_ids: list[int]
    begun: str = ""
    is_continued: bool = False


def encode_messages(
    messages: Sequence[Message],
    model: ServedModel,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tool_use: ToolUse | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Prompt:
    """The prompt of a conversation. Raises InvalidRequest, NotFound."""
    if model.chat_template is None:
        raise NotFound(
            "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
            "Did you mean to use v1/completions?",
            param="model",
        )
    clash = _TEMPLATE_ARGUMENTS.intersection(template_kwargs or {})
    if clash:
        raise InvalidRequest(
            f"Invalid key in 'chat_template_kwargs': {min(clash)}.",
            param="chat_template_kwargs",
            code="invalid_value",
        )
    told = [template_message(message) for message in messages]
    tools = None
    begun, is_continued = "", False
    try:
        if model.tools.is_told:
            if isinstance(model.chat_template, ChatTemplate):  # built-in formats take the text
                told = [_with_parsed_arguments(message) for message in told]
            tools = [tool.definition for tool in tool_use.tools] if tool_use else None
        elif tool_use is not None or has_tool_messages(told):
            taught = teach(model.tools.format, told, tool_use)
            told = taught.messages
            begun, is_continued = taught.begun, taught.continues
            if is_continued:
                add_generation_prompt, continue_final_message = False, True
        token_ids = model.chat_template.encode(
            told,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(template_kwargs or {}),
        )
    except TemplateError as exc:
        raise InvalidRequest(str(exc), param="messages", code="invalid_value") from exc
    except RecursionError as exc:
        raise InvalidRequest(
            "The schemas of the tools or the arguments of earlier calls are nested too deeply.",
            code="invalid_value",
        ) from exc
    return Prompt(token_ids, begun, is_continued)


def encode_prompt(
    prompt: str | list[int], model: ServedModel, *, add_special_tokens: bool = True
) -> list[int]:
    """Return a plain prompt's token ids; in text, control tokens are control tokens.

    Raises InvalidRequest for an id outside the vocabulary and for an empty prompt.
    """
    tokenizer = model.tokenizer
    if not isinstance(prompt, str):
        check_token_ids(prompt, model, "prompt")
        return prompt
    prompt_ids = tokenizer.encode(prompt, parse_special=True)
    if add_special_tokens:
        prompt_ids = [*tokenizer.prompt_prefix, *prompt_ids]
    if not prompt_ids:
        raise InvalidRequest(
            "Invalid 'prompt': empty string. This model needs at least one token to start from.",
            param="prompt",
            code="empty_string",
        )
    return prompt_ids


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates know them; the arguments of calls are still text."""
    # templates know "system" and "tool"; OpenAI's names of the same are newer and older
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    optional = {
        "name": message.name,
        "reasoning_content": message.thinking,
        "tool_calls": message.calls or None,
        "tool_call_id": message.result_of,
    }
    given = {field: value for field, value in optional.items() if value is not None}
    return {"role": role, "content": message.text, **given}


def check_token_ids(token_ids: Sequence[int], model: ServedModel, param: str) -> None:
    """Raises InvalidRequest for an id outside the vocabulary."""
    worst = max(token_ids, default=0)
    if worst >= model.tokenizer.vocab_size:
        raise InvalidRequest(
            f"Invalid token id in '{param}': {worst}. Maximum value is "
            f"{model.tokenizer.vocab_size - 1}.",
            param=param,
            code="invalid_value",
        )


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates write arguments as JSON; what is no JSON object stays the text that it is.

    So does JSON with half a character, which no template could write out.
    """
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _parsed(call)}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _parsed(call: Mapping[str, Any]) -> object:
    text = call["function"]["arguments"]
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text
