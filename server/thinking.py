"""Thinking of the served model: what a request asks for, and where an answer begins.

Owns what `reasoning_effort` and `enable_thinking` mean for a chat template, and refuses what the
model cannot do. Called by server/convert.py and the chat route.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.chat import ReasoningEffort
from protocol.errors import InvalidRequest
from protocol.prompt_format import PromptFormat
from protocol.reasoning import ThinkingMarkers, ThinkingStart, thinking_start
from server.state import ServedModel

_SWITCH = "enable_thinking"  # the template variables of Qwen3, SmolLM3, GLM-4.5 ...
_EFFORT = "reasoning_effort"  # ... and of gpt-oss; also the request's parameter
_KWARGS = "chat_template_kwargs"


def thinking_of(
    prompt_ids: Sequence[int], model: ServedModel
) -> tuple[ThinkingMarkers, ThinkingStart] | None:
    """How the answer to a chat prompt is to be parted; None for a model that cannot think."""
    markers = model.chat_template.thinking_markers if model.chat_template else None
    if markers is None:
        return None
    return markers, thinking_start(prompt_ids, model.tokenizer, markers)


def thinking_kwargs(
    effort: ReasoningEffort | None, kwargs: Mapping[str, Any], template: PromptFormat | None
) -> Mapping[str, Any]:
    """`kwargs` for the template, with what the effort adds to them.

    "none" turns thinking off and every other effort turns it on, where the template has the switch;
    how much only counts for templates that read `reasoning_effort`. A template that has neither
    always thinks or never does: what asks for that is accepted, its opposite refused.

    Raises InvalidRequest (param reasoning_effort or chat_template_kwargs).
    """
    if template is None:
        return kwargs
    wished = {} if effort is None else {_SWITCH: effort != "none", _EFFORT: effort}
    added = {name: wished[name] for name in template.variables.intersection(wished)}
    if effort is not None and not added:
        _check_fixed(
            effort != "none", template, _EFFORT, f"'{_EFFORT}' does not support '{effort}'"
        )
    if _SWITCH not in template.variables and isinstance(kwargs.get(_SWITCH), bool):
        reason = f"'{_SWITCH}' in '{_KWARGS}' has no effect"
        _check_fixed(kwargs[_SWITCH], template, _KWARGS, reason)
    for name, value in added.items():
        if kwargs.get(name, value) != value:
            raise InvalidRequest(
                f"'{_EFFORT}' and '{name}' in '{_KWARGS}' contradict each other.",
                param=_EFFORT,
                code="invalid_parameter_combination",
            )
    return {**kwargs, **added}


def _check_fixed(is_wished: bool, template: PromptFormat, param: str, reason: str) -> None:
    """Raises InvalidRequest if a model without a switch cannot do as wished."""
    if is_wished == template.writes_thinking:
        return
    habit = "always" if template.writes_thinking else "never"
    raise InvalidRequest(
        f"Unsupported value: {reason} with this model, which {habit} thinks.",
        param=param,
        code="unsupported_value",
    )
