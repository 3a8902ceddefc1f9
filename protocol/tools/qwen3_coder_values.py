"""The grammar of an argument's value in Qwen3-Coder's calls.

A string stands there as it is, so its rules are put into a regular expression. Where a schema also
allows something else, no string may look like that: the parser would take it for that. `format` is
left to the model; a tool with `strict` may not have it here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocol.tools.answer_grammar import (
    ANYTHING,
    CallableTool,
    Lark,
    UnsupportedSchema,
    literal,
    pattern,
)
from protocol.tools.parameter_types import JSON_TYPES, types_of
from protocol.tools.qwen3_coder import converted
from protocol.tools.schema_parts import (
    NO_STRINGS,
    Inseparable,
    alternatives,
    choices_in,
    standalone,
    types_in,
)

_PARAMETER_END = "</parameter>"

_INTEGER = "-?(0|[1-9][0-9]*)"
_SPELLED = {
    "null": "null",
    "boolean": "true|false",
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(\.[0-9]+)?([eE][\-+]?[0-9]+)?",
}
_SPACE = r"[\s\x1c-\x1f]*"  # what Python strips
_LOOKS_LIKE = {
    **{kind: f"{_SPACE}({spelled}){_SPACE}" for kind, spelled in _SPELLED.items()},
    "null": f"{_SPACE}(null|None){_SPACE}",
    "boolean": f"{_SPACE}([tT]rue|[fF]alse){_SPACE}",
    "array": rf"{_SPACE}\[{ANYTHING}",
    "object": rf"{_SPACE}\{{{ANYTHING}",
}
_NUMBER_BEGUN = rf"{_SPACE}-?[0-9]{ANYTHING}"
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OF_STRINGS = {"minLength", "maxLength", "pattern", "format"}


def write_value(
    lark: Lark, tool: CallableTool, suffix: str, part: object, place: Sequence[str]
) -> str:
    """The Lark of a value of `part`, up to the line break behind its closing marker.

    `place`: of `part` in the tool's schema. Raises UnsupportedSchema.
    """
    types = types_of(part, tool.schema)
    if types and "string" not in types:
        json_rule = lark.json(f"json_{suffix}", standalone(part, tool.schema), tool, place)
        return f"{json_rule} {lark.text(f'{chr(10)}{_PARAMETER_END}{chr(10)}')}"
    try:
        leaves = alternatives(part, tool.schema)
    except Inseparable:
        raise UnsupportedSchema(
            tool.name, "this model's calls cannot have strings of combined schemas as arguments."
        ) from None
    if tool.tool.strict and any("format" in leaf for leaf in leaves):
        raise UnsupportedSchema(
            tool.name, "this model's calls cannot be held to a 'format' of strings."
        )
    return _Value(lark, tool, suffix, types, place).of(leaves)


class _Value:
    """The rules of a value that can be a string."""

    def __init__(
        self,
        lark: Lark,
        tool: CallableTool,
        suffix: str,
        types: frozenset[str],
        place: Sequence[str],
    ) -> None:
        self._lark = lark
        self._tool = tool
        self._suffix = suffix
        self._types = types
        self._place = place

    def of(self, leaves: Sequence[Mapping[str, Any]]) -> str:
        in_json = [schema for leaf in leaves if (schema := _json_part(leaf))]
        texts = [text for leaf in leaves for text in self._texts(leaf, leaves, in_json)]
        ways = []
        if texts:
            body = self._lark.rule(
                f"BODY_{self._suffix}", f"({' | '.join(texts)}) & ~{_marker_inside(self._lark)}"
            )
            end = literal(f"\n{_PARAMETER_END}")
            terminal = self._lark.rule(f"VALUE_{self._suffix}", f"{body} {end}")
            # lazy: nothing goes on behind the marker
            value = self._lark.rule(f"value_{self._suffix}[lazy]", terminal)
            ways.append(f"{value} {literal(chr(10))}")
        if in_json:
            schema = in_json[0] if len(in_json) == 1 else {"anyOf": in_json}
            whole = standalone(schema, self._tool.schema)
            rule = self._lark.json(f"json_{self._suffix}", whole, self._tool, self._place)
            ways.append(f"{rule} {self._lark.text(f'{chr(10)}{_PARAMETER_END}{chr(10)}')}")
        if not ways:
            raise UnsupportedSchema(self._tool.name, "there is no value for one of its arguments.")
        return f"({' | '.join(ways)})"

    def _texts(
        self,
        leaf: Mapping[str, Any],
        leaves: Sequence[Mapping[str, Any]],
        in_json: Sequence[Mapping[str, Any]],
    ) -> Iterator[str]:
        """Terms of a terminal for the values of `leaf` that are no JSON."""
        choices = _choices(leaf)
        if choices is not None:
            for choice in choices:
                if (text := self._spelled(choice, leaves)) is not None:
                    yield literal(text)
            return
        kinds = types_in(leaf)
        if not leaf.keys() - {"type"} and set(kinds).issuperset(("string", *NO_STRINGS)):
            yield f"/{ANYTHING}/"  # whatever it is taken for
            return
        if "string" in kinds:
            terms = [f"/{expression}/" for expression in _expressions(leaf)]
            terms += [f"~/{expression}/" for expression in self._refused(in_json)]
            yield f"({' & '.join(terms)})"
        for kind in kinds:
            if kind in _SPELLED and not (kind in ("integer", "number") and _BOUNDS & leaf.keys()):
                yield f"/{_SPELLED[kind]}/"

    def _refused(self, in_json: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What looks like something else that the schema allows."""
        for kind, expression in _LOOKS_LIKE.items():
            if self._types != {"string"} and (not self._types or kind in self._types):
                yield expression
        if any({"integer", "number"} & set(types_in(schema)) for schema in in_json):
            yield _NUMBER_BEGUN  # or it could not be told from the beginning of one

    def _spelled(self, choice: object, leaves: Sequence[Mapping[str, Any]]) -> str | None:
        """A choice as a text, None if the parser would take that for another value."""
        text = choice if isinstance(choice, str) else json.dumps(choice)
        if _PARAMETER_END in text:
            return None
        read = text if self._types == {"string"} else json.loads(converted(text, self._types))
        is_same = read == choice and type(read) is type(choice)
        allowed = [json.dumps(value) for leaf in leaves for value in _choices(leaf) or ()]
        return text if is_same or json.dumps(read) in allowed else None


def _choices(leaf: Mapping[str, Any]) -> list[object] | None:
    if (choices := choices_in(leaf)) is None:
        return None
    kinds = set(types_in(leaf))
    return [choice for choice in choices if JSON_TYPES[type(choice)] & kinds]


def _json_part(leaf: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of the values that are written as JSON, None if there are none."""
    kinds = types_in(leaf)
    if _choices(leaf) is not None:
        return None
    written = [kind for kind in kinds if kind in ("array", "object")]
    if _BOUNDS & leaf.keys():
        written += [kind for kind in kinds if kind in ("integer", "number")]
    if not written or (len(kinds) > len(NO_STRINGS) and not leaf.keys() - {"type"}):
        return None
    rest = {key: value for key, value in leaf.items() if key not in _OF_STRINGS}
    return {**rest, "type": written[0] if len(written) == 1 else written}


def _marker_inside(lark: Lark) -> str:
    """The terminal of all that has the closing marker in it, wherever: a value ends with the first.

    Not with ANYTHING at its end: that is all of UTF-8 and not all bytes, so the library would not
    see at once that nothing is left, and give up where a length is counted too.
    """
    lark.shared("EVERYTHING", r"~/[^\s\S]/")
    return lark.shared("MARKER_INSIDE", f"/{ANYTHING}{pattern(_PARAMETER_END)}/ EVERYTHING")


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
