"""Chat messages to prompt token ids: the model's own Jinja chat template, sandboxed.

Owns the rule that control tokens come from the template only: the same text inside messages, tools
or template arguments is tokenised as plain text. Otherwise as transformers' apply_chat_template.
Knows nothing of the API schemas; called by the server with plain JSON data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from protocol.control_text import ControlText, Shield
from protocol.reasoning import find_markers
from protocol.template_environment import (
    TemplateRefused,
    TemplateTooLarge,
    compile_template,
    variables_of,
)
from protocol.tokenizer import Tokenizer

_MAX_PROMPT_CHARACTERS = 1 << 26
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class TemplateError(Exception):
    """The template refused the messages or failed on them; the message is fit for the client."""


class ChatTemplate:
    """One compiled chat template with its tokenizer; render() and encode() are thread-safe.

    Attributes:
        variables: names that the template reads and may not have set itself.
        thinking_markers: None for a model that cannot think.
        writes_thinking: the template itself has the markers.
        strips_answer: an answer is its text as it is.
    """

    strips_answer = False

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Raises TemplateError on a syntax error."""
        try:
            self._template = compile_template(source)
            self.variables = variables_of(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template is not valid: {error}") from error
        self.thinking_markers = find_markers(source, tokenizer)
        self.writes_thinking = (
            self.thinking_markers is not None and self.thinking_markers.opening in source
        )
        self._source = source
        self._tokenizer = tokenizer
        self._control_text = ControlText(tokenizer.special_tokens)
        tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        self._variables = {name: text for name, text in tokens.items() if text is not None}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt as text, for tests and debugging. Arguments and errors as encode()."""
        rendered, shield = self._render(
            messages, tools, add_generation_prompt, continue_final_message, kwargs
        )
        return shield.restore(rendered)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """Prompt token ids. Null content counts as "". `kwargs` become template variables.

        With continue_final_message (and add_generation_prompt off) the prompt ends inside the last
        message, so that the model goes on with it.

        Raises:
            TemplateError: the template refuses these messages, or fails on them.
            ValueError: a lone surrogate in a text.
        """
        rendered, shield = self._render(
            messages, tools, add_generation_prompt, continue_final_message, kwargs
        )
        parts = self._tokenizer.split_special(rendered)
        return self._tokenizer.encode_parts(
            shield.restore(part) if isinstance(part, str) else part for part in parts
        )

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: Mapping[str, Any],
    ) -> tuple[str, Shield]:
        """The rendered prompt with the clients' control text still shielded, and the shield."""
        conversation = [_normalised(message) for message in messages]
        inputs = {"documents": None, **kwargs, "messages": conversation, "tools": tools or None}
        inputs["add_generation_prompt"] = add_generation_prompt
        try:
            shield = self._control_text.shield(inputs, self._source)
        except ValueError as error:
            raise TemplateError(str(error)) from error
        protected = {name: shield.protect(value) for name, value in inputs.items()}
        variables = {**self._variables, **protected}
        if not continue_final_message:
            return self._run(variables, shield), shield
        if add_generation_prompt:
            raise TemplateError(
                "continue_final_message and add_generation_prompt cannot both be true"
            )
        final = _mark_final_message(variables["messages"], shield.marker)
        return _cut_at_marker(self._run(variables, shield), final, shield.marker), shield

    def _run(self, variables: Mapping[str, Any], shield: Shield) -> str:
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                num_characters += len(piece)
                if num_characters > _MAX_PROMPT_CHARACTERS:
                    raise TemplateTooLarge("the rendered prompt is too long")
        except TemplateRefused as error:
            raise TemplateError(shield.restore(str(error))) from error
        except Exception as error:  # a template can raise anything Python can
            reason = shield.restore(str(error)) or type(error).__name__
            raise TemplateError(f"the chat template failed on these messages: {reason}") from error
        return "".join(pieces)


def _normalised(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with content "" for null, and reasoning under each name that templates read.

    The names are those of transformers' chat_template_utils._alias_reasoning_fields.
    """
    copy = dict(message)
    if copy.get("content") is None:
        copy["content"] = ""
    reasoning = next((copy[k] for k in _REASONING_FIELDS if copy.get(k) is not None), None)
    if reasoning is not None:
        copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
    return copy


def _mark_final_message(messages: list[dict[str, Any]], marker: str) -> str:
    """Put the marker after the last message's text; returns that text."""
    content = messages[-1]["content"] if messages else ""
    tag = marker + " "  # whether the space survives tells whether the template trims
    if isinstance(content, str) and content:
        messages[-1]["content"] = content + tag
        return content
    for part in reversed(content) if isinstance(content, list) else ():
        if isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + tag
            return text
    raise TemplateError("continue_final_message needs a final message with text")


def _cut_at_marker(rendered: str, final: str, marker: str) -> str:
    """The prompt up to the end of the last message's text, as transformers cuts it."""
    end = rendered.rfind(marker)
    if end < 0 or final.strip() not in rendered:
        raise TemplateError(
            "continue_final_message: the chat template leaves out the text of the final message"
        )
    is_trimmed = not rendered.startswith(marker + " ", end)
    return rendered[:end].rstrip() if is_trimmed else rendered[:end]
