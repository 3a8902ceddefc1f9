"""Schemas of tools as clients write them, and what of one is promised."""

import json
import re
from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]


def of(required: str = "", **properties: Any) -> Schema:
    """An object; `required` names properties, with blanks between them."""
    return {"type": "object", "properties": properties, "required": required.split()}


TEXT, INTEGER, BOOLEAN, NULL = ({"type": t} for t in ("string", "integer", "boolean", "null"))
_TREE = of("v", v=INTEGER, kids={"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2})
_UNIT = {"title": "Unit", "enum": ["C", "F"], "type": "string"}
_PLACE = of("lat", lat={"type": "number"}, lon={"type": "number"})

SCHEMAS: dict[str, Schema] = {
    "no properties": of(),
    "nothing": {},
    "an object": {"type": "object"},
    "strings": of(
        "city",
        city=TEXT,
        unit={"enum": ["C", "F"]},
        code={"type": "string", "pattern": "^[a-c]{1,3}$"},
        day={"type": "string", "format": "date"},
    ),
    "lengths": of(
        "a b d",
        a={"type": "string", "minLength": 2, "maxLength": 4},
        b={"type": "string", "maxLength": 3},
        c={"type": "string", "minLength": 1},
        d={"type": "string", "minLength": 1, "maxLength": 5000},
    ),
    "patterns": of(
        "a",
        a={"type": "string", "pattern": "x[0-9]+|y"},
        b={"type": "string", "pattern": "^a|b$"},
        c={"type": "string", "pattern": "^a", "maxLength": 5},
    ),
    "numbers": of(
        "n",
        n={"type": "integer", "minimum": -3, "maximum": 120},
        x={"type": "number", "exclusiveMinimum": 0, "maximum": 7.5},
        y={"type": "number"},
        b=BOOLEAN,
        e={"type": "number", "enum": [1, 2.5]},
    ),
    "nulls": of(
        "a b",
        a={"type": ["string", "null"]},
        b={"anyOf": [INTEGER, NULL]},
        c={"anyOf": [{"type": "string", "maxLength": 300}, NULL]},
        d={"type": ["string", "null"], "enum": ["x", None]},
    ),
    "strings or others": of(
        "a f",
        a={"type": ["string", "integer"]},
        b={"anyOf": [TEXT, {"type": "array", "items": INTEGER}]},
        c={"type": ["string", "boolean"], "maxLength": 3},
        d={"type": ["string", "object"]},
        e={"anyOf": [{"type": "string", "pattern": "^x"}, NULL]},
        f={"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "minLength": 2}]},
    ),
    "choices": of(
        "a",
        a={"anyOf": [{"enum": ["on", "off"]}, INTEGER]},
        b={"enum": [1, "1", None, "null", True]},
        c={"const": "5"},
        d={"enum": ["5", "a</parameter>b", 6]},
        e={"enum": [[1], "[1]", {"a": 1}]},
    ),
    "anything": of("a", a={}, b=True, c={"description": "?"}, d={"minLength": 2}, e={"minimum": 3}),
    "arrays": of(
        "a",
        a={"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        b={"type": "array"},
        c={"type": "array", "items": INTEGER, "maxItems": 2},
    ),
    "objects": of("o", o=of("k", k=BOOLEAN, l=TEXT, m=of(z=INTEGER)), p={"type": "object"}),
    "definitions": {
        **of("a t", a={"$ref": "#/$defs/unit"}, t={"$ref": "#/$defs/tree"}),
        "$defs": {"unit": _UNIT, "tree": _TREE},
    },
    "pydantic": {
        **of(
            "place n",
            unit={"allOf": [{"$ref": "#/$defs/Unit"}], "default": "C"},
            place={"anyOf": [{"$ref": "#/$defs/Place"}, NULL], "title": "Place"},
            n={"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 4}]},
        ),
        "$defs": {"Unit": _UNIT, "Place": _PLACE},
    },
    "zod": of(
        "a b",
        a=of("k", k=TEXT, l={"type": ["string", "null"]}),
        b={"type": "array", "items": {"$ref": "#/properties/a"}, "maxItems": 2},
        c={"$ref": "#/properties/a/properties/l"},
        d={"anyOf": [{"$ref": "#/properties/b"}, TEXT]},
    ),
    "itself": of("v", v=INTEGER, next={"$ref": "#"}),
    "a reference": {"$ref": "#/$defs/args", "$defs": {"args": of("s", s=TEXT, n=INTEGER)}},
    "more of any": {**of("a", a=INTEGER), "additionalProperties": True},
    "more integers": {**of(a=BOOLEAN), "additionalProperties": INTEGER},
    "more strings": {**of(a=BOOLEAN, b=INTEGER), "additionalProperties": TEXT},
    "a map": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 2}},
    "closed": {**of("a", a=TEXT), "additionalProperties": False},
    "unicode": of("城市", 城市={"enum": ["北京", 'é"\n']}, ñ=TEXT, 词=INTEGER),
    "optional": of("b", a=INTEGER, b=NULL, c=INTEGER, d=BOOLEAN),
    "left out": of(
        "a",
        a={"type": "array", "items": INTEGER, "uniqueItems": True, "contains": {"const": 1}},
        b={"type": "string", "format": "made-up", "not": {"const": "x"}},
        c={"type": "string", "pattern": "^(?!x)a"},
    ),
    "one of two": of(
        "a",
        a={"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 1}]},
        b={"oneOf": [of("k", k={"const": "x"}), of("k", k={"const": "y"})]},
        c={"oneOf": [TEXT, INTEGER]},
    ),
    "all of": of("a", a={"allOf": [of(x=INTEGER), {"required": ["x"]}]}),
    "required only": of("a zz", a=INTEGER),
    "a base": {
        **of("o", o={"$ref": "#/$defs/base", **of("y", y=INTEGER)}),
        "$defs": {"base": of("x", x=INTEGER)},
    },
    "alternatives": {**of(a=INTEGER), "anyOf": [{"required": ["a"]}, of("b", b=INTEGER)]},
    "by pattern": {**of(a=INTEGER), "patternProperties": {"^x": INTEGER}},
    "no Python names": {"type": "object", "properties": {"b-c": TEXT, "from": INTEGER}},
    "names with blanks": {"type": "object", "properties": {"a b": TEXT}},
}


def enforced(schema: Schema, unenforced: Sequence[str]) -> Schema:
    """The schema without what `unenforced` names; of a `oneOf` that is that it is not two."""
    copy: Schema = json.loads(json.dumps(schema))
    for path in reversed(unenforced):  # what is inside of another before that
        *steps, last = [step for step in re.split(r"\.|\[(\d+)\]", path) if step]
        part: Any = copy
        for step in steps:
            part = part[int(step)] if isinstance(part, list) else part[step]
        value = part.pop(last)
        if last == "oneOf":
            part["allOf"] = [*part.get("allOf", []), {"anyOf": value}]
    return copy
