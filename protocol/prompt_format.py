"""How messages become prompt token ids: the PromptFormat Protocol.

Implementations: prompt.py (the model's own Jinja template); qwen_format, baichuan_format and
chatglm_format for families whose checkpoints have no template.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from protocol.reasoning import ThinkingMarkers


class PromptFormat(Protocol):
    """Immutable; encode() may be called from several threads."""

    @property
    def variables(self) -> frozenset[str]:
        """Names that the format reads of encode()'s kwargs."""

    @property
    def thinking_markers(self) -> ThinkingMarkers | None:
        """None for a model that cannot think."""

    @property
    def writes_thinking(self) -> bool:
        """The format itself has the markers."""

    @property
    def strips_answer(self) -> bool:
        """White space at the start of an answer is the format's, not the answer's."""

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """Prompt token ids; no text of the messages becomes a control token.

        Raises:
            TemplateError: the format has no way to say this.
            ValueError: a lone surrogate in a text.
        """


class BuiltInFormat:
    """What the built-in formats have in common: no variables and no thinking."""

    variables: frozenset[str] = frozenset()
    thinking_markers: ThinkingMarkers | None = None
    writes_thinking = False
    strips_answer = True
