"""The JSON schemas of tools: what is wrong with one, and the form that a grammar can follow.

A tool with `strict` is followed to the letter or refused. Of any other some keywords cannot be
followed by a grammar and are left to the model: `unenforced` names them, so that the reply can.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.strict_schema import strict_problem
from protocol.tools.calls import Tool
from protocol.tools.schema_parts import are_apart
from protocol.validation import MAX_QUOTED

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}

_MAX_DEPTH = 64  # deeper ones no grammar compiles
_UNENFORCED = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
        *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedProperties", "unevaluatedItems", "minProperties", "maxProperties"),
        *("$dynamicRef", "$recursiveRef"),
    }
)
_FORMATS = frozenset(
    {
        *("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri"),
        "uuid",
    }
)
_LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")
_UNSAID = frozenset({"title", "description", "examples", "default", "$comment", "$schema"})

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTED = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SINGLE = frozenset({"items", "additionalProperties"})

# Where one of them describes the same object, more properties may be allowed than it names itself.
_OPEN = frozenset({"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "additionalProperties"})
_ELSEWHERE = frozenset({"anyOf", "oneOf", "$ref"})  # says it in another part
_OF_OBJECTS = frozenset({"properties", "required", "additionalProperties", "patternProperties"})


def schema_problem(tool: Tool) -> str | None:
    """What is wrong with the parameters of a tool, in OpenAI's words; None if nothing is."""
    schema = tool.parameters
    kind = schema.get("type", "object")
    if kind != "object":
        short = str(kind)[:MAX_QUOTED]
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{short}\"'."
    return strict_problem(schema) if tool.strict else None


@dataclass(frozen=True, slots=True)
class GrammarSchema:
    """`schema` without what says nothing to a grammar; `unenforced`: paths inside the original."""

    schema: dict[str, Any]
    unenforced: tuple[str, ...] = ()


def grammar_schema(tool: Tool) -> GrammarSchema:
    """The arguments of a call.

    An object that does not say whether it may have further properties may have none: what a model
    makes up there is of no use. A text that is valid then is valid for the original.
    """
    parameters = tool.parameters
    if not tool.strict and not parameters.keys() & (_OPEN | {"properties"}):
        parameters = {**parameters, **NO_PARAMETERS}
    walk = _Walk(parameters, tool.strict)
    schema = walk.read(parameters, "", 0)
    assert isinstance(schema, dict)
    return GrammarSchema({"type": "object", **schema}, tuple(walk.unenforced))


def _has_combined(value: object, depth: int) -> bool:
    """Whether several parts of a schema describe one object: none of them knows all it may have."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        elsewhere = value.keys() & _ELSEWHERE
        if "allOf" in value or len(elsewhere) > 1 or (elsewhere and value.keys() & _OF_OBJECTS):
            return True
        value = list(value.values())
    return isinstance(value, list) and any(_has_combined(item, depth + 1) for item in value)


class _Walk:
    """Copies a schema, part by part."""

    def __init__(self, root: Mapping[str, Any], is_strict: bool) -> None:
        self.unenforced: list[str] = []
        self._root = root
        self._is_strict = is_strict
        self._closes = not _has_combined(root, 0)

    def read(self, part: object, path: str, depth: int) -> object:
        if not isinstance(part, Mapping) or depth > _MAX_DEPTH:
            return part
        copy = {}
        for key, value in part.items():
            here = f"{path}.{key}" if path else key
            if key in _UNSAID:
                continue
            if not self._is_strict and self._leaves_out(key, value, part):
                self.unenforced.append(here)
                continue
            if key == "uniqueItems" and value is False:
                continue
            if key == "oneOf" and not self._is_strict and not are_apart(value, self._root):
                self.unenforced.append(here)  # that it is no more than one of them
            copy[key] = self._value(key, value, here, depth)
        return copy if self._is_strict else self._with_all_said(copy)

    def _with_all_said(self, part: dict[str, Any]) -> dict[str, Any]:
        """The same object with all the properties that it can have."""
        properties, required = part.get("properties"), part.get("required")
        if isinstance(properties, Mapping) and not part.keys() & (_ELSEWHERE | {"allOf"}):
            more = part.get("additionalProperties", True)
            if isinstance(required, list) and more is not False and "patternProperties" not in part:
                names = [name for name in required if isinstance(name, str)]
                unsaid = {name: more for name in names if name not in properties}
                part = {**part, "properties": {**properties, **unsaid}}
        if self._closes and "properties" in part and not _OPEN.intersection(part):
            part = {**part, "additionalProperties": False}
        return part

    def _value(self, key: str, value: object, path: str, depth: int) -> object:
        if key in _SINGLE:
            return self.read(value, path, depth + 1)
        if key in _NAMED and isinstance(value, Mapping):
            return {
                name: self.read(item, f"{path}.{name}", depth + 1) for name, item in value.items()
            }
        if key in _LISTED and isinstance(value, Sequence) and not isinstance(value, str):
            return [self.read(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        return value

    @staticmethod
    def _leaves_out(key: str, value: object, part: Mapping[str, object]) -> bool:
        if key == "format":
            is_text = part.get("type", "string") == "string" or isinstance(part.get("type"), list)
            return is_text and not (isinstance(value, str) and value in _FORMATS)
        if key == "pattern":
            return isinstance(value, str) and any(sign in value for sign in _LOOK_AROUND)
        return key in _UNENFORCED and not (key == "uniqueItems" and value is False)
