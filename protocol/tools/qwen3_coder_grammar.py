"""The grammar of Qwen3-Coder's calls (qwen3_coder.py reads them): arguments as elements, not JSON.

A string stands there as it is, so its rules are put into a regular expression. `format` is left to
the model; a tool with `strict` may not have it here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from protocol.tools.parameter_types import parameter_types, resolve

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_DEFINITIONS = ("$defs", "definitions")
_NAME = "[a-zA-Z_][a-zA-Z0-9_.-]{0,63}"  # of an argument that the schema allows, not names

# A value ends where its closing marker first stands in a line of its own; one that stands
# elsewhere would end it too.
_END = rf"\n{pattern(_PARAMETER_END)}"
_NOT_INSIDE = rf"({ANYTHING}[^\n])?{pattern(_PARAMETER_END)}{ANYTHING}"


def qwen3_coder_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer. Raises UnsupportedSchema."""
    syntax = CallSyntax(
        begin=f"{_OPENING}\n{_FUNCTION}",
        separator="\n",
        # <tool_call> may be missing; the parser takes that for a call as well
        found=[rf"{ANYTHING}({pattern(_OPENING)}\n)?{pattern(_FUNCTION)}"],
    )
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    schema = resolve(tool.schema, tool.schema)
    if schema is None or not _is_plain(schema):
        raise UnsupportedSchema(
            tool.name, "this model's calls can only have arguments that 'properties' names."
        )
    required = schema.get("required")
    elements = []
    for i, (name, part) in enumerate(_mapping(schema.get("properties")).items()):
        rule = lark.rule(
            f"argument_{number}_{i}",
            f"{lark.text(f'{_PARAMETER}{name}>')} "
            + _Value(lark, tool, f"{number}_{i}").of(part, schema),
        )
        is_required = isinstance(required, list) and name in required
        elements.append(rule if is_required else f"{rule}?")
    more = schema.get("additionalProperties")
    if more is not None and more is not False:
        value = _Value(lark, tool, f"{number}_more").of({} if more is True else more, schema)
        lark.rule(f"MORE_{number}", f"/{pattern(_PARAMETER)}{_NAME}>/")
        elements.append(f"{lark.rule(f'more_{number}', f'MORE_{number} {value}')}*")
    return " ".join(
        [lark.text(f"{tool.name}>\n"), *elements, lark.text(f"{_FUNCTION_END}\n{_CLOSING}")]
    )


def _is_plain(schema: Mapping[str, Any]) -> bool:
    return not any(key in schema for key in ("anyOf", "oneOf", "allOf", "patternProperties"))


class _Value:
    """The rules of one argument's value: the line break before it up to the one behind its end."""

    def __init__(self, lark: Lark, tool: CallableTool, suffix: str) -> None:
        self._lark = lark
        self._tool = tool
        self._suffix = suffix

    def of(self, part: object, root: Mapping[str, Any]) -> str:
        types = parameter_types({**root, "properties": {"value": part}}, "value")
        if types and "string" not in types:
            return self._json(part, root)
        schema = resolve(part, root) or {}
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(choices, list):
            return self._choice(choices)
        return self._text(schema, types)

    def _json(self, part: object, root: Mapping[str, Any]) -> str:
        shared = {key: root[key] for key in _DEFINITIONS if key in root}
        schema = {**shared, **part} if isinstance(part, Mapping) else part
        rule = self._lark.json(f"json_{self._suffix}", schema, self._tool)
        return f"{self._lark.text(chr(10))} {rule} {self._end}"

    def _choice(self, choices: Sequence[object]) -> str:
        texts = [self._lark.text(f"\n{_spelled(choice)}") for choice in choices]
        return f"({' | '.join(texts)}) {self._end}"

    def _text(self, schema: Mapping[str, Any], types: frozenset[str]) -> str:
        if self._tool.tool.strict and "format" in schema:
            raise UnsupportedSchema(
                self._tool.name, "this model's calls cannot be held to a 'format' of strings."
            )
        terms = [f"/{expression}{_END}/" for expression in _expressions(schema)]
        refused = [_NOT_INSIDE]
        if types & {"array", "object"}:  # a text that looks like one would be one
            refused.append(rf"\s*[\[{{]{ANYTHING}")
        terms += [f"~/{expression}/" for expression in refused]
        terminal = self._lark.rule(f"VALUE_{self._suffix}", " & ".join(terms))
        rule = self._lark.rule(f"value_{self._suffix}[lazy]", terminal)
        return f"{self._lark.text(chr(10))} {rule} {self._lark.text(chr(10))}"

    @property
    def _end(self) -> str:
        return self._lark.text(f"\n{_PARAMETER_END}\n")


def _expressions(schema: Mapping[str, Any]) -> Iterator[str]:
    """Regular expressions that a string has to match, all of them."""
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    yield ANYTHING if not least and most == "" else f"(?s:.){{{least},{most}}}"
    searched = schema.get("pattern")
    if isinstance(searched, str):
        is_begun = searched.startswith("^")
        is_ended = searched.endswith("$") and not searched.endswith(r"\$")
        inner = searched[is_begun : len(searched) - is_ended].replace("/", r"\/")
        yield f"{'' if is_begun else ANYTHING}({inner}){'' if is_ended else ANYTHING}"


def _spelled(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
