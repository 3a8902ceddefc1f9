"""Calls and results in the messages of a request: what has to follow what, and one form for both.

OpenAI has two ways to write them, tools and, before, functions. Prompts know only the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from protocol.validation import MAX_QUOTED, InvalidField


class Turn(Protocol):
    """What is looked at of a message (protocol/chat_messages.py)."""

    @property
    def role(self) -> str: ...

    @property
    def result_of(self) -> str | None: ...

    @property
    def calls(self) -> list[dict[str, Any]]: ...


def check_tool_messages(messages: Sequence[Turn]) -> None:
    """Each result belongs to a call of the answer before it, and each call has its result.

    Raises InvalidField, in OpenAI's words.
    """
    open_ids: list[str] = []
    may_follow = False  # results of the last answer's calls
    for i, message in enumerate(messages):
        if message.role == "tool":
            if not may_follow:
                raise InvalidField(
                    "invalid_value",
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceding message with 'tool_calls'.",
                    f"messages[{i}].role",
                )
            if message.result_of not in open_ids:
                raise InvalidField(
                    "invalid_value",
                    f"Invalid parameter: 'tool_call_id' of "
                    f"'{(message.result_of or '')[:MAX_QUOTED]}' is not a call of the message "
                    "before that has no response yet.",
                    f"messages[{i}].tool_call_id",
                )
            open_ids.remove(message.result_of)
            continue
        _check_answered(open_ids)
        open_ids = [call["id"] for call in message.calls if "id" in call]
        may_follow = bool(open_ids)
    _check_answered(open_ids)


def _check_answered(open_ids: Sequence[str]) -> None:
    if open_ids:
        raise InvalidField(
            "invalid_value",
            "An assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            f"{', '.join(open_ids)[:MAX_QUOTED]}",
            "messages",
        )


def has_tool_messages(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an earlier answer called something, or there is a result."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
