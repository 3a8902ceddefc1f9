"""/tokenize and /detokenize: text or messages to token ids and back (vLLM's field names)."""

from typing import Annotated

import msgspec
from pydantic import Field, model_validator

from protocol.chat_messages import MAX_MESSAGES, Message
from protocol.sampling import RequestModel, TokenId
from protocol.tools.conversation import check_tool_messages
from protocol.tools.request import ToolFields
from protocol.validation import InvalidField


class TokenizeRequest(ToolFields):
    """A text (`prompt`) or a conversation (`messages`, with its tools), exactly one of them."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True  # with prompt: begin with the bos token if the model has one
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_one_source(self) -> "TokenizeRequest":
        if self.prompt is None and self.messages is None:
            raise InvalidField(
                "missing_required_parameter", "Missing required parameter: 'prompt'.", "prompt"
            )
        if self.prompt is not None and self.messages is not None:
            raise InvalidField(
                "invalid_parameter_combination",
                "Setting 'prompt' and 'messages' at the same time is not supported.",
                "messages",
            )
        if self.prompt is not None and (self.tools or self.functions):
            raise InvalidField(
                "invalid_parameter_combination",
                "Tools are told of with 'messages' only.",
                "tools" if self.tools else "functions",
            )
        check_tool_messages(self.messages or [])
        return self


class TokenizeReply(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: list[TokenId]


class DetokenizeReply(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
