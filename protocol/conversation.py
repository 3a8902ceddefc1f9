"""Messages as a system text and turns, and which turns stay when the history is too long.

For the built-in prompt formats (qwen_format, baichuan_format, chatglm_format).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.prompt import TemplateError

# A message with this key set keeps its turn in the prompt however long the history is: for the
# turn that tells the model of its tools.
PINNED = "is_pinned"

# The key of a text that stands in the line of the role, for a format that has one there.
METADATA = "metadata"


@dataclass(frozen=True, slots=True)
class Said:
    role: str
    text: str
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message and what follows up to the next one."""

    messages: tuple[Said, ...]
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    system: str | None  # None: no system message, which is not the same as an empty one
    turns: tuple[Turn, ...]  # at least one; the last is the one to be answered

    @property
    def last_role(self) -> str:
        return self.turns[-1].messages[-1].role


def read_conversation(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    roles: Collection[str] = ("user", "assistant"),
) -> Conversation:
    """Null content counts as "". A system message comes first or not at all.

    Raises:
        TemplateError: a role or a content that is not known, no message, or options that clash.
    """
    if tools:
        raise TemplateError("this model's chat format has no place for tools")
    said = [Said(_role(m), _text(m), m.get(METADATA, "")) for m in messages]
    system = said[0].text if said and said[0].role == "system" else None
    groups: list[list[int]] = []
    for i in range(0 if system is None else 1, len(said)):
        if said[i].role not in roles:
            reason = "has to come first" if said[i].role == "system" else "is not known"
            raise TemplateError(f"the role {said[i].role!r} {reason} in this model's chat format")
        if said[i].role == "user" or not groups:
            groups.append([])
        groups[-1].append(i)
    if not groups:
        raise TemplateError("at least one message of a user is needed")
    if continue_final_message and add_generation_prompt:
        raise TemplateError("continue_final_message and add_generation_prompt cannot both be true")
    if continue_final_message and said[-1].role != "assistant":
        raise TemplateError("continue_final_message needs a final message of the assistant")
    return Conversation(
        system,
        tuple(
            Turn(tuple(said[i] for i in group), any(messages[i].get(PINNED) for i in group))
            for group in groups
        ),
    )


def newest_turns(turns: Sequence[Turn], lengths: Sequence[int], room: int) -> list[int]:
    """Indices of the turns to keep: pinned ones, and the newest others that fit with them.

    Args:
        lengths: tokens of each turn.
        room: tokens there are for all of them.
    """
    used = sum(n for turn, n in zip(turns, lengths, strict=True) if turn.is_pinned)
    kept: list[int] = []
    has_room = True
    for i in reversed(range(len(turns))):
        if not turns[i].is_pinned:
            has_room = has_room and used + lengths[i] <= room
            if not has_room:
                continue
            used += lengths[i]
        kept.append(i)
    return kept[::-1]


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise TemplateError("a message has no role")
    return role


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TemplateError("this model's chat format takes text only")
    return content
