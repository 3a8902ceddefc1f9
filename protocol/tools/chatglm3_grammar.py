"""The grammar of ChatGLM3's calls (chatglm3.py reads them): a line with the name, then Python.

The arguments are those of a Python call, each written as JSON, which the parser takes as well.
Where they have no names that Python knows, or a schema says more of them than one by one, they are
one object behind **.
"""

from collections.abc import Mapping, Sequence

from protocol.tools.answer_grammar import (
    ANYTHING,
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    answer_grammar,
    literal,
    pattern,
)
from protocol.tools.schema_parts import standalone

_ROLE = "<|assistant|>"
_OPENING, _CLOSING = "\n ```python\ntool_call(", ")\n```"
_BY_NAME = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}


def chatglm3_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer."""
    names = "|".join(pattern(tool.name) for tool in rules.tools)
    fence = r"(```[a-zA-Z0-9]*)?"
    syntax = CallSyntax(
        begin="",
        separator=f"\n{_ROLE}" if _ROLE in rules.special_tokens else "\n",
        joint=_ROLE,
        excluded=(
            rf"({ANYTHING}(\n|{pattern(_ROLE)}))?[ \t\r\n]*({names})[ \t\r]*\n[ \t\r\n]*"
            rf"{fence}[ \t\r\n]*"
            rf"tool_call\({ANYTHING}"
        ),
    )
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    written = _by_name(lark, tool, number)
    if written is None:
        written = f"{literal('**')} {lark.arguments(tool, number)}"
    return " ".join([literal(f"{tool.name}{_OPENING}"), written, literal(_CLOSING)])


def _by_name(lark: Lark, tool: CallableTool, number: int) -> str | None:
    """The Lark of arguments one by one, None where they cannot be written so."""
    schema = tool.schema
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not all(name.isidentifier() for name in properties):
        return None
    is_map = not properties and schema.get("additionalProperties", False) is not False
    if is_map or not schema.keys() <= _BY_NAME:
        return None
    required = schema.get("required")
    return _sequence(lark, tool, number, required if isinstance(required, list) else [])


def _sequence(lark: Lark, tool: CallableTool, number: int, needed: Sequence[str]) -> str:
    # first: no argument stands before; rest: one does
    first, rest = "", ""
    for i, (name, part) in reversed(list(enumerate(tool.schema["properties"].items()))):
        argument = _argument(lark, tool, f"{number}_{i}", name, part)
        with_rest = f"{argument} {rest}".strip()
        first = lark.rule(
            f"first_{number}_{i}",
            with_rest if name in needed else f"{with_rest} | {first or literal('')}",
        )
        rest = lark.rule(
            f"rest_{number}_{i}",
            f"({literal(', ')} {argument}){'' if name in needed else '?'} {rest}",
        )
    return first


def _argument(lark: Lark, tool: CallableTool, suffix: str, name: str, part: object) -> str:
    schema = standalone(part, tool.schema)
    value = lark.json(f"json_{suffix}", schema, tool, ("properties", name))
    return lark.rule(f"argument_{suffix}", f"{literal(f'{name}=')} {value}")
