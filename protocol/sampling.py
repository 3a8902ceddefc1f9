"""Request fields that chat and text completions share, and the validators they are made of.

Ranges are OpenAI's, wider where noted. Null means "not given" everywhere, as OpenAI's SDK sends it.
Nothing here is accepted and then ignored: what cannot be honoured is refused with its name.
"""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from protocol.validation import BRANCH, MAX_QUOTED, InvalidField

MAX_STOPS = 16  # OpenAI: 4
MAX_LOGPROBS = 20

INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # one spelling for each, so that no key hides another


class RequestModel(BaseModel):
    """Base of every request body: unknown fields are errors, "3" is no number, true is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def string_or_array(value: object) -> str | None:
    """Discriminate a `str | list` union; None refuses every other kind."""
    if isinstance(value, str):
        return BRANCH + "string"
    return BRANCH + "array" if isinstance(value, list) else None


def one_of(expected: str) -> Discriminator:
    """Return the discriminator of a string-or-array field; `expected` goes into the message."""
    return Discriminator(
        string_or_array, custom_error_type="wrong_branch", custom_error_message=expected
    )


def refuse(value: object, info: ValidationInfo) -> object:
    """Refuse any value but null: the parameter exists at OpenAI, not here."""
    if value is not None:
        raise InvalidField(
            "unsupported_parameter",
            f"Unsupported parameter: '{info.field_name}' is not supported with this model.",
        )
    return value


Refused = Annotated[object, BeforeValidator(refuse)]


def _check_logit_bias(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if _TOKEN_ID.fullmatch(key) is None:
            raise InvalidField(
                "invalid_value",
                f"Invalid key in 'logit_bias': {key[:MAX_QUOTED]}. You should only be submitting "
                "non-negative integers.",
            )
    return bias


Stop = Annotated[
    Annotated[str, Field(min_length=1), Tag(BRANCH + "string")]
    | Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(max_length=MAX_STOPS),
        Tag(BRANCH + "array"),
    ],
    one_of("one of a string or array of strings"),
]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # off unless asked for; OpenAI: on


class SamplingFields(RequestModel):
    """What both endpoints take beside the prompt."""

    model: str
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
            AfterValidator(_check_logit_bias),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    # extensions
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None  # 0 and -1 = off
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Field(ge=-INT32_MAX - 1, le=INT32_MAX)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def include_obfuscation(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_obfuscation)

    @model_validator(mode="after")
    def _check_stream_options(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise InvalidField(
                "invalid_value",
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                "stream_options",
            )
        return self
