"""`response_format` and `structured_outputs`: what a client says its answer must look like.

The first is OpenAI's, the second what vLLM takes for a regular expression, a choice or a grammar.
What OpenAI asks of a strict schema is in protocol/strict_schema.py; whether a schema can be
compiled is the engine's to say.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.sampling import RequestModel
from protocol.strict_schema import strict_problem
from protocol.validation import InvalidField

_NAME = re.compile(r"[a-zA-Z0-9_-]+")


class JsonSchemaFormat(RequestModel):
    """`response_format.json_schema`; without a schema it is any object."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None  # for the model at OpenAI; templates here have no place for it
    schema_: dict[str, object] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> "JsonSchemaFormat":
        if _NAME.fullmatch(self.name) is None:
            raise InvalidField(
                "invalid_value",
                "Invalid 'response_format.json_schema.name': string does not match pattern. "
                "Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
                "name",
            )
        return self


class ResponseFormat(RequestModel):
    """`response_format` of a chat request."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        wanted = self.type == "json_schema"
        if wanted and self.json_schema is None:
            raise InvalidField(
                "missing_required_parameter",
                "Missing required parameter: 'response_format.json_schema'.",
                "json_schema",
            )
        if self.json_schema is None:
            return self
        if not wanted:
            raise InvalidField(
                "invalid_parameter_combination",
                "'response_format.json_schema' is only allowed with 'type' 'json_schema'.",
                "json_schema",
            )
        if self.json_schema.strict:
            problem = strict_problem(self.json_schema.schema_ or {})
            if problem is not None:
                raise InvalidField(
                    "invalid_json_schema",
                    f"Invalid schema for response_format '{self.json_schema.name}': {problem}",
                )
        return self


class StructuredOutputs(RequestModel):
    """`structured_outputs`: exactly one of them."""

    json_: dict[str, object] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None  # Lark

    @property
    def given(self) -> list[str]:
        """The names of those that are there."""
        values = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return [name for name, value in values.items() if value is not None]

    @model_validator(mode="after")
    def _check_one(self) -> "StructuredOutputs":
        if len(self.given) != 1:
            raise InvalidField(
                "invalid_value",
                "Exactly one of 'json', 'regex', 'choice' and 'grammar' is needed in "
                f"'structured_outputs', but got {len(self.given)}.",
            )
        return self


def check_output_format(
    structured_outputs: StructuredOutputs | None,
    ignore_eos: bool | None,
    response_format: ResponseFormat | None = None,
) -> None:
    """Raises InvalidField for a combination that cannot be honoured."""
    has_format = response_format is not None and response_format.type != "text"
    if has_format and structured_outputs is not None:
        raise InvalidField(
            "invalid_parameter_combination",
            "'response_format' and 'structured_outputs' cannot both be given.",
            "structured_outputs",
        )
    if ignore_eos and (has_format or structured_outputs is not None):
        raise InvalidField(
            "invalid_parameter_combination",
            "'ignore_eos' cannot be combined with "
            f"'{'response_format' if has_format else 'structured_outputs'}': an answer that is "
            "complete must end.",
            "ignore_eos",
        )
