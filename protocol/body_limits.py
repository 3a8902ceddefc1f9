"""How much a request's JSON may hold: messages, content parts, tools, levels.

Looked at before anything else is, as checking, rendering and compiling cost far more than decoding.
What else a request may have many of (choices, stop strings, prompts, ...) its schema bounds.
"""

from dataclasses import dataclass

from protocol.errors import InvalidRequest

MAX_DEPTH = 128  # levels; a JSON schema takes two for each of its own


@dataclass(frozen=True, slots=True)
class BodyLimits:
    max_messages: int = 4096
    max_content_parts: int = 10_000  # of all messages together
    max_tools: int = 512

    def check(self, body: dict[str, object]) -> None:
        """Raises InvalidRequest. Takes what has another type as none: that is found later."""
        messages = body.get("messages")
        if isinstance(messages, list):
            _check_length("messages", len(messages), self.max_messages)
            num_parts = sum(
                len(message["content"])
                for message in messages
                if isinstance(message, dict) and isinstance(message.get("content"), list)
            )
            if num_parts > self.max_content_parts:
                raise InvalidRequest(
                    f"Invalid 'messages': too many content parts. Expected at most "
                    f"{self.max_content_parts} in all messages together, but got {num_parts}.",
                    param="messages",
                    code="array_above_max_length",
                )
        for field in ("tools", "functions"):
            tools = body.get(field)
            if isinstance(tools, list):
                _check_length(field, len(tools), self.max_tools)
        _check_depth(body)


DEFAULT_BODY_LIMITS = BodyLimits()


def _check_length(param: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidRequest(
            f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, "
            f"but got an array with length {length} instead.",
            param=param,
            code="array_above_max_length",
        )


def _check_depth(body: dict[str, object]) -> None:
    """Level by level, so that no depth is too much for the check itself."""
    level: list[dict[str, object] | list[object]] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise InvalidRequest(
        f"Invalid body: it is nested deeper than {MAX_DEPTH} levels.", code="invalid_value"
    )
