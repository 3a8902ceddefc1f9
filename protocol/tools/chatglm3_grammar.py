"""The grammar of ChatGLM3's calls (chatglm3.py reads them): a line with the name, then Python.

The arguments are those of a Python call, each written as JSON, which the parser takes as well.
"""

from collections.abc import Mapping
from typing import Any

from protocol.tools.answer_grammar import (
    ANYTHING,
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    UnsupportedSchema,
    answer_grammar,
    literal,
    pattern,
)
from protocol.tools.parameter_types import resolve

_ROLE = "<|assistant|>"
_OPENING, _CLOSING = "\n ```python\ntool_call(", ")\n```"
_DEFINITIONS = ("$defs", "definitions")
_BEYOND = ("anyOf", "oneOf", "allOf", "patternProperties")


def chatglm3_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer. Raises UnsupportedSchema."""
    names = "|".join(pattern(tool.name) for tool in rules.tools)
    fence = r"(```[a-zA-Z0-9]*)?"
    syntax = CallSyntax(
        begin="",
        separator=f"\n{_ROLE}" if _ROLE in rules.special_tokens else "\n",
        joint=_ROLE,
        excluded=(
            rf"({ANYTHING}\n)?[ \t\r\n]*({names})[ \t\r]*\n[ \t\r\n]*{fence}[ \t\r\n]*"
            rf"tool_call\({ANYTHING}"
        ),
    )
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    schema = resolve(tool.schema, tool.schema)
    if schema is None or any(key in schema for key in _BEYOND):
        raise UnsupportedSchema(
            tool.name, "this model's calls can only have arguments that 'properties' names."
        )
    properties = schema.get("properties")
    arguments = list(properties.items()) if isinstance(properties, Mapping) else []
    for name, _ in arguments:
        if not name.isidentifier():
            raise UnsupportedSchema(
                tool.name, "this model's calls can only have arguments that are Python names."
            )
    required = schema.get("required")
    needed = set(required) if isinstance(required, list) else set()
    shared = {key: tool.schema[key] for key in _DEFINITIONS if key in tool.schema}
    # first: no argument stands before; rest: one does
    first, rest = "", ""
    for i, (name, part) in reversed(list(enumerate(arguments))):
        argument = _argument(lark, tool, f"{number}_{i}", name, part, shared)
        is_needed = name in needed
        with_rest = f"{argument} {rest}".strip()
        first = lark.rule(
            f"first_{number}_{i}",
            with_rest if is_needed else f"{with_rest} | {first or literal('')}",
        )
        rest = lark.rule(
            f"rest_{number}_{i}", f"({literal(', ')} {argument}){'' if is_needed else '?'} {rest}"
        )
    return " ".join([literal(f"{tool.name}{_OPENING}"), first, literal(_CLOSING)])


def _argument(
    lark: Lark,
    tool: CallableTool,
    suffix: str,
    name: str,
    part: object,
    shared: Mapping[str, Any],
) -> str:
    schema = {**shared, **part} if isinstance(part, Mapping) else part
    value = lark.json(f"json_{suffix}", schema, tool)
    return lark.rule(f"argument_{suffix}", f"{literal(f'{name}=')} {value}")
