"""The grammar of Qwen3-Coder's calls (qwen3_coder.py reads them): arguments as elements, not JSON.

What a value may be is in qwen3_coder_values.py.
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
    pattern,
)
from protocol.tools.parameter_types import resolve
from protocol.tools.qwen3_coder_values import write_value

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER = "<parameter="
_NAME = "[a-zA-Z_][a-zA-Z0-9_.-]{0,63}"  # of an argument that the schema allows, not names
_MAX_MORE = 16  # of those
_BEYOND = ("$ref", "anyOf", "oneOf", "allOf", "patternProperties")


def qwen3_coder_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer. Raises UnsupportedSchema."""
    syntax = CallSyntax(
        begin=f"{_OPENING}\n{_FUNCTION}",
        separator="\n",
        # <tool_call> may be missing; the parser takes that for a call as well
        found=[ANYTHING + pattern(_FUNCTION)],
    )
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    schema = resolve(tool.schema, tool.schema)
    if schema is None or _is_combined(tool.schema, schema):
        raise UnsupportedSchema(
            tool.name, "this model's calls can only have arguments that 'properties' names."
        )
    properties = _mapping(schema.get("properties"))
    required = schema.get("required")
    elements = []
    for i, (name, part) in enumerate(properties.items()):
        if any(char in "<>" or char.isspace() for char in name):
            raise UnsupportedSchema(
                tool.name,
                "this model's calls cannot have '<', '>' or blanks in an argument's name.",
            )
        value = write_value(lark, tool, f"{number}_{i}", part, ("properties", name))
        rule = lark.rule(
            f"argument_{number}_{i}", f"{lark.text(f'{_PARAMETER}{name}>{chr(10)}')} {value}"
        )
        is_required = isinstance(required, list) and name in required
        elements.append(rule if is_required else f"{rule}?")
    more = schema.get("additionalProperties")
    if more is not None and more is not False:
        suffix = f"{number}_{len(properties)}"
        value = write_value(lark, tool, suffix, more, ("additionalProperties",))
        named = "|".join(map(pattern, properties))
        but = f" & ~/{pattern(_PARAMETER)}({named})>/" if named else ""
        lark.rule(f"MORE_{number}", f"/{pattern(_PARAMETER)}{_NAME}>/{but}")
        rule = lark.rule(f"more_{number}", f"MORE_{number} {lark.text(chr(10))} {value}")
        elements.append(f"({rule}){{0,{_MAX_MORE}}}")
    return " ".join(
        [lark.text(f"{tool.name}>\n"), *elements, lark.text(f"{_FUNCTION_END}\n{_CLOSING}")]
    )


def _is_combined(whole: Mapping[str, Any], resolved: Mapping[str, Any]) -> bool:
    """Whether arguments are said in other places than the `properties` of one object."""
    if whole is not resolved and {"properties", "required", "additionalProperties"} & whole.keys():
        return True
    return any(key in resolved for key in _BEYOND) or any(key in whole for key in _BEYOND[1:])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
