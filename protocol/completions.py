"""/v1/completions: the request, the reply and, for streams, the same reply in pieces.

Source: OpenAI's openapi.json, CreateCompletionRequest and CreateCompletionResponse.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field, Tag, model_validator

from protocol.chat import FinishReason
from protocol.sampling import INT32_MAX, MAX_LOGPROBS, Refused, SamplingFields, TokenId
from protocol.structured_output import StructuredOutputs, check_output_format
from protocol.usage import Usage
from protocol.validation import BRANCH, InvalidField

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 2048  # OpenAI's limit
MAX_SEQUENCES = 4096  # prompts x candidates: each is a task of the server


def _prompt_kind(value: object) -> str | None:
    """Discriminate by the first element; the branch then checks the others."""
    if isinstance(value, str):
        return BRANCH + "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, list):
        return BRANCH + "many token ids"
    is_integer = isinstance(first, int) and not isinstance(first, bool)
    return BRANCH + ("token ids" if is_integer else "texts")


TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag(BRANCH + "text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag(BRANCH + "texts")]
    | Annotated[TokenIds, Tag(BRANCH + "token ids")]
    | Annotated[
        list[TokenIds],
        Field(min_length=1, max_length=MAX_PROMPTS),
        Tag(BRANCH + "many token ids"),
    ],
    Discriminator(
        _prompt_kind,
        custom_error_type="wrong_branch",
        custom_error_message="one of a string, array of strings, array of integers, or array of "
        "integer arrays",
    ),
]


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None  # OpenAI: at most 5
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: Refused = None

    structured_outputs: StructuredOutputs | None = None  # an extension

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one for each group of n choices."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    @property
    def num_candidates(self) -> int:
        """Sequences to generate for each prompt; the best `num_choices` are returned."""
        return self.best_of or self.num_choices

    @model_validator(mode="after")
    def _check_combinations(self) -> "CompletionRequest":
        if self.num_candidates < self.num_choices:
            raise InvalidField(
                "invalid_value",
                f"Invalid 'best_of': must be at least 'n'. Expected a value >= {self.num_choices}, "
                f"but got {self.best_of} instead.",
                "best_of",
            )
        if len(self.prompts) * self.num_candidates > MAX_SEQUENCES:
            raise InvalidField(
                "invalid_value",
                f"Invalid 'n': {len(self.prompts)} prompts with {self.num_candidates} candidates "
                f"each are more than {MAX_SEQUENCES}.",
                "n",
            )
        if self.stream and self.num_candidates > self.num_choices:
            raise InvalidField(
                "invalid_parameter_combination",
                "Results cannot be streamed when 'best_of' is larger than 'n'.",
                "best_of",
            )
        if self.max_tokens == 0 and not self.echo:
            raise InvalidField(
                "integer_below_min_value",
                "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1 unless "
                "'echo' is enabled, but got 0 instead.",
                "max_tokens",
            )
        check_output_format(self.structured_outputs, self.ignore_eos)
        return self


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel arrays, one entry for each token; offsets count characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]  # null for a prompt's first token
    top_logprobs: list[dict[str, float] | None] | None  # null if none were asked for
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None  # null in all but the last chunk of a choice


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The reply as a whole, and each chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    obfuscation: str | UnsetType = UNSET
