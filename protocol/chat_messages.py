"""The messages of a chat request: the roles and contents we take, clear refusals of the rest.

What one message of a conversation has to do with another is in protocol/tools/conversation.py.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from protocol.sampling import Refused, RequestModel, one_of
from protocol.validation import BRANCH, InvalidField

_OTHER_PARTS = ("image_url", "input_audio", "file", "refusal")
_STRING_OR_PARTS = "one of a string or array of objects"

# Checking 100,000 takes seconds in which nothing else is answered. OpenAI takes 2,048.
MAX_MESSAGES = 4096  # and parts of one, and calls


def _refuse_other_parts(part: object) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _OTHER_PARTS:
        raise InvalidField(
            "unsupported_parameter",
            f"Unsupported content part: '{kind}' is not supported with this model. Only 'text' "
            "parts are.",
        )
    return part


def _refuse_custom(call: object) -> object:
    if isinstance(call, dict) and call.get("type") == "custom":
        raise InvalidField(
            "unsupported_value",
            "Unsupported value: calls of type 'custom' are not supported with this model. Only "
            "'function' is.",
        )
    return call


def _null_if_empty(value: object) -> object:
    return None if value == [] else value  # SDKs send an empty list back with a reply's message


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


Parts = Annotated[
    list[Annotated[TextPart, BeforeValidator(_refuse_other_parts)]],
    Field(min_length=1, max_length=MAX_MESSAGES),
]
Content = Annotated[
    Annotated[str, Tag(BRANCH + "string")] | Annotated[Parts, Tag(BRANCH + "array")],
    one_of(_STRING_OR_PARTS),
]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")]


class CalledFunction(RequestModel):
    """A call of an earlier answer. `arguments` is JSON text, or whatever the model wrote.

    `parsed_arguments`: the same again, which OpenAI's SDK puts beside it and sends back.
    """

    name: Annotated[str, Field(min_length=1)]
    arguments: str
    parsed_arguments: object = None


class CalledTool(RequestModel):
    """An entry of `tool_calls`. `index` is of a stream's deltas and says nothing here."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Message(RequestModel):
    """One turn. Fields of a reply's message may come back, as long as they are null."""

    role: Role
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[
        Annotated[
            list[Annotated[CalledTool, BeforeValidator(_refuse_custom)]],
            Field(max_length=MAX_MESSAGES),
        ]
        | None,
        BeforeValidator(_null_if_empty),
    ] = None
    tool_call_id: str | None = None
    id: str | None = None  # Qwen-Agent's name of the same
    extra: dict[str, object] | None = None  # what Qwen-Agent notes beside it; says nothing here
    parsed: object = None  # the content once more, which OpenAI's SDK sends back
    function_call: CalledFunction | None = None  # OpenAI's old way to call one
    reasoning_content: str | None = None  # thinking of an earlier answer, for the chat template
    reasoning: str | None = None  # vLLM's name of the same
    refusal: Refused = None
    audio: Refused = None
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
    def _check_calls(self) -> "Message":
        of_role = {
            **dict.fromkeys(("tool_calls", "function_call", "parsed"), "assistant"),
            **dict.fromkeys(("tool_call_id", "id", "extra"), "tool"),
        }
        for field, role in of_role.items():
            if getattr(self, field) is not None and self.role != role:
                raise InvalidField(
                    "invalid_value",
                    f"'{field}' is only allowed in messages of role '{role}'.",
                    field,
                )
        if self.tool_calls and self.function_call:
            raise InvalidField(
                "invalid_parameter_combination",
                "'tool_calls' and 'function_call' cannot both be given in a message.",
                "function_call",
            )
        needed, value = {
            "tool": ("tool_call_id", self.result_of),
            "function": ("name", self.name),
        }.get(self.role, ("", ""))
        if value is None:
            raise InvalidField(
                "missing_required_parameter", f"Missing required parameter: '{needed}'.", needed
            )
        return self

    @model_validator(mode="after")
    def _check_content(self) -> "Message":
        if self.role in ("assistant", "function") or self.content is not None:
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
    def result_of(self) -> str | None:
        """The id of the call that this is the result of."""
        return self.id if self.tool_call_id is None else self.tool_call_id

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls in the form of `tool_calls`; the old kind has no id."""
        if self.function_call is not None:
            return [_function(self.function_call)]
        return [{"id": call.id, **_function(call.function)} for call in self.tool_calls or ()]

    @property
    def text(self) -> str:
        """The whole content; parts are joined by line breaks, as other servers join them."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


def _function(called: CalledFunction) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": called.name, "arguments": called.arguments},
    }
