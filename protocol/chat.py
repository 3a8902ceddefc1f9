"""/v1/chat/completions: the request, the reply and the chunks of a stream.

Requests are pydantic models (checked once), replies are msgspec structs (encoded for every token).
Source: OpenAI's openapi.json, CreateChatCompletionRequest and its responses.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from protocol.chat_messages import MAX_MESSAGES, Message
from protocol.sampling import INT32_MAX, MAX_LOGPROBS, Refused, SamplingFields
from protocol.structured_output import ResponseFormat, StructuredOutputs, check_output_format
from protocol.tools.conversation import check_tool_messages
from protocol.tools.request import ToolFields
from protocol.usage import Usage
from protocol.validation import MAX_QUOTED, InvalidField

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _only(*allowed: object) -> BeforeValidator:
    """Accept null and `allowed`; anything else is a value we do not support."""

    def check(value: object, info: ValidationInfo) -> object:
        # bool is an int in Python: 1 must not pass for true
        if value is None or any(value == one and type(value) is type(one) for one in allowed):
            return value
        quoted = msgspec.json.encode(value).decode()[:MAX_QUOTED]
        raise InvalidField(
            "unsupported_value",
            f"Unsupported value: '{info.field_name}' does not support {quoted} with this model.",
        )

    return BeforeValidator(check)


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


MaxTokens = Annotated[int, Field(ge=1, le=INT32_MAX)]


class ChatRequest(SamplingFields, ToolFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None  # OpenAI's old name of the same
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning_effort: ReasoningEffort | None = None  # server/thinking.py has what it does
    metadata: Metadata | None = None  # for stored completions only; checked, then dropped
    store: Annotated[bool | None, _only(False)] = None
    service_tier: Annotated[str | None, _only("auto", "default")] = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[object, _only(["text"])] = None
    prompt_cache_retention: Annotated[str | None, _only("in_memory")] = None
    prompt_cache_key: str | None = None  # a routing hint; the prefix cache needs none
    safety_identifier: str | None = None  # names an end user, like `user`
    audio: Refused = None
    moderation: Refused = None
    prediction: Refused = None
    prompt_cache_options: Refused = None
    verbosity: Refused = None
    web_search_options: Refused = None

    # extensions
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: dict[str, object] | None = None
    add_generation_prompt: bool | None = None  # None: unless the final message is continued
    continue_final_message: bool | None = None

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _check_combinations(self) -> "ChatRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidField(
                "invalid_parameter_combination",
                "Setting 'max_tokens' and 'max_completion_tokens' to different values is not "
                "supported.",
                "max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidField(
                "invalid_value",
                "'top_logprobs' is only allowed when 'logprobs' is enabled.",
                "top_logprobs",
            )
        if self.continue_final_message:
            self._check_continuation()
        check_output_format(self.structured_outputs, self.ignore_eos, self.response_format)
        check_tool_messages(self.messages)
        if self.tool_use is not None:
            self._check_with_tools()
        return self

    def _check_with_tools(self) -> None:
        clashing = {
            "ignore_eos": bool(self.ignore_eos),
            "structured_outputs": self.structured_outputs is not None,
        }
        for field, is_given in clashing.items():
            if is_given:
                raise InvalidField(
                    "invalid_parameter_combination",
                    f"'{field}' cannot be combined with tools that may be called.",
                    field,
                )

    def _check_continuation(self) -> None:
        if self.add_generation_prompt:
            raise InvalidField(
                "invalid_parameter_combination",
                "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
                "continue_final_message",
            )
        if self.messages[-1].role != "assistant":
            raise InvalidField(
                "invalid_value",
                "'continue_final_message' needs a final message of role 'assistant'.",
                "continue_final_message",
            )


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class FunctionCalled(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCalled(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCalled


class ReplyMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | UnsetType = UNSET  # as DeepSeek has it; only if the model thought
    refusal: str | None = None
    tool_calls: list[ToolCalled] | UnsetType = UNSET
    function_call: FunctionCalled | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The reply as a whole."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: str = "default"
    system_fingerprint: str


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """More of a call; id, type and the function's name come with its first."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChunkDelta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET  # null in the opening, where no text may follow
    reasoning_content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChunkDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    service_tier: str = "default"
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET  # null in all but the last, if asked for
    obfuscation: str | UnsetType = UNSET
