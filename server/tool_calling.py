"""The tools of one chat request on their way to the model, and its calls on their way back.

Owns which messages the prompt is made of, the grammar and the parser of the answer. Knows no wire
format (server/chat_writer.py). Made by server/chat_plan.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.messages import Grammar, Thinking
from protocol.chat import FinishReason
from protocol.errors import InvalidRequest
from protocol.structured_output import ResponseFormat
from protocol.tools.answer_grammar import AnswerRules, CallableTool, NoGrammar, UnsupportedSchema
from protocol.tools.calls import Tool, ToolCallParser
from protocol.tools.formats import FORMATS, ToolFormat
from protocol.tools.json_answers import JsonAnswerParser
from protocol.tools.request import ToolUse
from protocol.tools.schemas import GrammarSchema, grammar_schema
from server.state import ServedModel

_JSON_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ToolCalling:
    """What a request asks of its tools, in the format of the model.

    Attributes:
        begun: what the prompt ends with of a text that the parser has to see whole.
        content_schema: of an answer that calls nothing; None: any text.
        schemas: of the tools that may be called, by their place among the request's tools.
    """

    use: ToolUse
    format: ToolFormat
    begun: str
    content_schema: dict[str, Any] | None
    schemas: dict[int, GrammarSchema]

    @classmethod
    def of(
        cls,
        use: ToolUse,
        tool_format: ToolFormat,
        begun: str,
        response_format: ResponseFormat | None,
    ) -> "ToolCalling":
        schemas = {
            i: grammar_schema(tool)
            for i, tool in enumerate(use.tools)
            if tool.name in use.callable_names
        }
        return cls(use, tool_format, begun, _content_schema(response_format), schemas)

    @property
    def callable_tools(self) -> Sequence[Tool]:
        return [self.use.tools[i] for i in self.schemas]

    @property
    def finish_reason(self) -> FinishReason:
        """Of an answer that called something and ended by itself."""
        if self.use.forced_name is not None:
            return "stop"  # as OpenAI does: the client knows what it asked for
        return "function_call" if self.use.is_legacy else "tool_calls"

    @property
    def stops(self) -> tuple[str, ...]:
        return FORMATS[self.format].stops

    @property
    def origin(self) -> str:
        """The request's field that the tools come from."""
        return "functions" if self.use.is_legacy else "tools"

    @property
    def unenforced(self) -> list[str]:
        """Paths in the request of what its schemas ask for and no grammar can promise."""
        inner = "parameters" if self.use.is_legacy else "function.parameters"
        return [
            f"{self.origin}[{i}].{inner}.{path}"
            for i, schema in self.schemas.items()
            for path in schema.unenforced
        ]

    def markers(self, model: ServedModel) -> dict[str, int]:
        """The control tokens whose text the parser has to see."""
        special = model.tokenizer.special_tokens
        wanted = FORMATS[self.format].markers
        return {marker: special[marker] for marker in wanted if marker in special}

    def parser(self) -> ToolCallParser:
        """A fresh one, for one choice."""
        parser = FORMATS[self.format].parser(self.callable_tools)
        if self.begun:
            parser.feed(self.begun)
        if self.content_schema is not None and not FORMATS[self.format].is_json:
            return JsonAnswerParser(parser)
        return parser

    def needs_grammar(self) -> bool:
        """Whether the request asks for what only a grammar can promise."""
        use = self.use
        is_strict = any(tool.strict for tool in self.callable_tools)
        return use.is_required or not use.allows_parallel or is_strict

    def grammar(self, model: ServedModel, thinking: Thinking | None) -> Grammar:
        """Of the whole answer. Raises InvalidRequest for a schema that has none in the format."""
        opening = None
        if thinking is not None and not thinking.is_open and isinstance(thinking.opening, str):
            opening = thinking.opening
        rules = AnswerRules(
            tools=tuple(
                CallableTool(self.use.tools[i], schema.schema) for i, schema in self.schemas.items()
            ),
            is_required=self.use.is_required,
            allows_parallel=self.use.allows_parallel,
            content_schema=self.content_schema,
            thinking_opening=opening,
            special_tokens=self.markers(model),
            continues_line=bool(self.begun),
        )
        try:
            text = FORMATS[self.format].grammar(rules)
        except NoGrammar as exc:
            is_of_one = isinstance(exc, UnsupportedSchema)
            message = str(exc) if is_of_one else f"Invalid '{self.origin}': {exc}"
            raise InvalidRequest(
                message, param=self.origin, code="invalid_function_parameters"
            ) from exc
        return Grammar(
            kind="lark",
            text=text,
            thinking=thinking,
            ends=FORMATS[self.format].ends,
            origin=self.origin,
        )


def _content_schema(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    if response_format is None or response_format.type == "text":
        return None
    format_ = response_format.json_schema
    return _JSON_OBJECT if format_ is None or format_.schema_ is None else format_.schema_
