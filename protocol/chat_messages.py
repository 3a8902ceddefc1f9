"""The messages of a chat request: the roles and contents we take, clear refusals of the rest."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from protocol.sampling import Refused, RequestModel, one_of
from protocol.validation import BRANCH, InvalidField

_OTHER_PARTS = ("image_url", "input_audio", "file", "refusal")
_TOOL_ROLES = ("tool", "function")
_STRING_OR_PARTS = "one of a string or array of objects"


def _refuse_other_parts(part: object) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _OTHER_PARTS:
        raise InvalidField(
            "unsupported_parameter",
            f"Unsupported content part: '{kind}' is not supported with this model. Only 'text' "
            "parts are.",
        )
    return part


def _refuse_tool_roles(role: object) -> object:
    if role in _TOOL_ROLES:
        raise InvalidField(
            "unsupported_value",
            f"Unsupported value: the role '{role}' is not supported with this model.",
        )
    return role


def _null_if_empty(value: object) -> object:
    return None if value == [] else value  # SDKs send an empty list back with a reply's message


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


Parts = Annotated[
    list[Annotated[TextPart, BeforeValidator(_refuse_other_parts)]], Field(min_length=1)
]
Content = Annotated[
    Annotated[str, Tag(BRANCH + "string")] | Annotated[Parts, Tag(BRANCH + "array")],
    one_of(_STRING_OR_PARTS),
]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")]


class Message(RequestModel):
    """One turn. Fields of a reply's message may come back, as long as they are null."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], BeforeValidator(_refuse_tool_roles)
    ]
    content: Content | None = None
    name: Name | None = None
    reasoning_content: str | None = None  # thinking of an earlier answer, for the chat template
    reasoning: str | None = None  # vLLM's name of the same
    refusal: Refused = None
    audio: Refused = None
    function_call: Refused = None
    tool_calls: Annotated[Refused, BeforeValidator(_null_if_empty)] = None
    annotations: Annotated[Refused, BeforeValidator(_null_if_empty)] = None

    @model_validator(mode="after")
    def _check_reasoning(self) -> "Message":
        given = {"reasoning_content": self.reasoning_content, "reasoning": self.reasoning}
        for field, value in given.items():
            if value is not None and self.role != "assistant":
                raise InvalidField(
                    "invalid_value",
                    f"'{field}' is only allowed in messages of role 'assistant'.",
                    field,
                )
        if len(set(given.values()) - {None}) > 1:
            raise InvalidField(
                "invalid_parameter_combination",
                "Setting 'reasoning_content' and 'reasoning' to different values is not supported.",
                "reasoning",
            )
        return self

    @model_validator(mode="after")
    def _check_content(self) -> "Message":
        if self.role == "assistant" or self.content is not None:
            return self
        if "content" in self.model_fields_set:
            raise InvalidField(
                "invalid_type",
                f"Invalid type for 'content': expected {_STRING_OR_PARTS}, but got null instead.",
                "content",
            )
        raise InvalidField(
            "missing_required_parameter", "Missing required parameter: 'content'.", "content"
        )

    @property
    def thinking(self) -> str | None:
        """What the assistant thought before this message's content."""
        return self.reasoning if self.reasoning_content is None else self.reasoning_content

    @property
    def text(self) -> str:
        """The whole content; parts are joined by line breaks, as other servers join them."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)
