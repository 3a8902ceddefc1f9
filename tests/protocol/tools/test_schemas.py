"""The schemas of tools: problems in OpenAI's words, and the form that a grammar follows."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.tools.calls import Tool
from protocol.tools.schemas import GrammarSchema, grammar_schema, schema_problem
from tests.protocol.tools.schema_cases import INTEGER, SCHEMAS, TEXT, Schema, enforced, of


def read(schema: Schema, *, strict: bool = False) -> GrammarSchema:
    return grammar_schema(Tool("f", "", schema, strict))


def closed(required: str = "", **properties: Any) -> Schema:
    return {**of(required, **properties), "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "strict", "problem"),
    [
        ({}, False, None),
        (of(a={"type": "strin"}), False, None),
        ({"type": "array"}, False, "'type: \"object\"', got 'type: \"array\"'"),
        ({"type": ["object"]}, False, "'type: \"object\"'"),
        (closed("a", a=TEXT), True, None),
        ({}, True, "'type: \"object\"', got 'type: \"None\"'"),
        (of("a", a=TEXT), True, "'additionalProperties' is required to be supplied"),
        (closed(a=TEXT), True, "Missing 'a'"),
        (closed("a", a={"not": {}}), True, "In context=('properties', 'a')"),
    ],
)
def test_problems(schema: Schema, strict: bool, problem: str | None) -> None:
    found = schema_problem(Tool("f", "", schema, strict))
    assert (found is None) if problem is None else (found is not None and problem in found)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, {"properties": {}, "additionalProperties": False}),
        ({"type": "object"}, {"properties": {}, "additionalProperties": False}),
        ({"properties": {"a": TEXT}}, {"properties": {"a": TEXT}, "additionalProperties": False}),
        (of(a=of(b=TEXT)), closed(a=closed(b=TEXT))),
        (of(a={"type": "array", "items": of()}), closed(a={"type": "array", "items": closed()})),
        (of(a={"type": "object"}), closed(a={"type": "object"})),
        (SCHEMAS["more of any"], SCHEMAS["more of any"]),
        (SCHEMAS["a map"], SCHEMAS["a map"]),
        (SCHEMAS["all of"], SCHEMAS["all of"]),
        (SCHEMAS["alternatives"], SCHEMAS["alternatives"]),
        (SCHEMAS["by pattern"], SCHEMAS["by pattern"]),
        (SCHEMAS["a base"], SCHEMAS["a base"]),
        (SCHEMAS["itself"], closed("v", v=INTEGER, next={"$ref": "#"})),
        (of("a z", a=TEXT), closed("a z", a=TEXT, z=True)),
        (
            {**of("z"), "additionalProperties": TEXT},
            {**of("z", z=TEXT), "additionalProperties": TEXT},
        ),
        ({**of("z"), "additionalProperties": False}, closed("z")),
        (
            of(title=TEXT, description={"title": "x", "type": "string", "default": 3}),
            closed(title=TEXT, description=TEXT),
        ),
        (
            {**of(a={"$ref": "#/$defs/title"}), "$defs": {"title": {"title": "x", "const": "y"}}},
            {**closed(a={"$ref": "#/$defs/title"}), "$defs": {"title": {"const": "y"}}},
        ),
        (of(a={"enum": [{"title": 1}]}), closed(a={"enum": [{"title": 1}]})),
        (of(a={"uniqueItems": False}), closed(a={})),
    ],
)
def test_what_a_grammar_follows(schema: Schema, expected: Schema) -> None:
    assert read(schema) == GrammarSchema({"type": "object", **expected})


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        (of(a={"not": {"const": 1}}), ["properties.a.not"]),
        (of(a={"anyOf": [TEXT, {"minContains": 1}]}), ["properties.a.anyOf[1].minContains"]),
        ({**of(), "minProperties": 1, "if": {}, "then": {}}, ["minProperties", "if", "then"]),
        (of(a={"type": "string", "format": "binary"}), ["properties.a.format"]),
        (of(a={"format": "made-up"}), ["properties.a.format"]),
        (of(a={"type": ["string", "null"], "format": "iri"}), ["properties.a.format"]),
        (of(a={"type": "string", "format": "uuid"}), []),
        (of(a={"type": "integer", "format": "int32"}), []),
        (of(a={"pattern": "^(?=a)"}), ["properties.a.pattern"]),
        (of(a={"pattern": "^(?:a)"}), []),
        (of(a={"items": {"uniqueItems": True}}), ["properties.a.items.uniqueItems"]),
        ({**of(), "$defs": {"a": {"contains": {}}}}, ["$defs.a.contains"]),
        ({"properties": {"not": TEXT, "contains": INTEGER}}, []),
        (of(a={"oneOf": [TEXT, INTEGER]}), []),
        (of(a={"oneOf": [INTEGER, {"type": "number"}]}), ["properties.a.oneOf"]),
        (of(a={"oneOf": [{"enum": [1, 2]}, {"const": 3}]}), []),
        (of(a={"oneOf": [{"enum": [1, 2]}, {"const": 2}]}), ["properties.a.oneOf"]),
        (of(a={"oneOf": [of("k", k={"const": i}) for i in range(3)]}), []),
        (of(a={"oneOf": [of(k={"const": i}) for i in range(3)]}), ["properties.a.oneOf"]),
        (of(a={"oneOf": [{"$ref": "#/nowhere"}, TEXT]}), ["properties.a.oneOf"]),
    ],
)
def test_what_it_leaves_to_the_model(schema: Schema, paths: list[str]) -> None:
    assert list(read(schema).unenforced) == paths


@pytest.mark.parametrize("key", SCHEMAS)
def test_a_strict_schema_is_followed_to_the_letter(key: str) -> None:
    found = read(SCHEMAS[key], strict=True)
    assert found.unenforced == ()
    assert {"type": "object", **SCHEMAS[key]}.keys() == found.schema.keys()
    assert "additionalProperties" not in read(of(a=TEXT), strict=True).schema


def test_a_schema_that_is_too_deep_is_copied_no_further() -> None:
    schema: Schema = {"title": "x"}
    for _ in range(200):
        schema = {"properties": {"a": schema}}
    assert read(schema).schema["properties"]


names = st.sampled_from(["a", "b", "c"])
scalars = st.sampled_from(
    [
        *(TEXT, INTEGER, {"type": "number", "minimum": 1}, {"const": 1}, {"enum": ["x", None]}),
        *({}, True, {"not": {"const": "x"}}, {"type": "string", "minLength": 2}),
        {"$ref": "#/$defs/d"},
    ]
)


def _object(properties: Schema, required: list[str], more: object) -> Schema:
    schema = {"type": "object", "properties": properties, "required": sorted(set(required))}
    return schema if more is None else {**schema, "additionalProperties": more}


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    more = st.sampled_from([None, True, False]) | inner
    properties = st.dictionaries(names, inner, max_size=3)
    return st.builds(_object, properties, st.lists(names, max_size=2), more)


parts = st.recursive(
    scalars,
    lambda inner: (
        _objects(inner)
        | st.builds(lambda item: {"type": "array", "items": item}, inner)
        | st.builds(
            lambda key, items: {key: items},
            st.sampled_from(["anyOf", "oneOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=2),
        )
        | st.builds(lambda one, other: {**one, "anyOf": [other]}, _objects(inner), inner)
    ),
    max_leaves=5,
)
values = st.recursive(
    st.sampled_from(["x", "xy", 0, 1, 1.5, None]),
    lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=200)
@given(_objects(parts), st.lists(st.dictionaries(names, values, max_size=3), max_size=20))
def test_what_it_lets_through_is_valid(schema: Schema, items: list[Any]) -> None:
    schema = {**schema, "$defs": {"d": {"anyOf": [INTEGER, of("a", a=INTEGER)]}}}
    found = read(schema)
    original = jsonschema.Draft202012Validator(enforced(schema, found.unenforced))
    followed = jsonschema.Draft202012Validator(enforced(found.schema, _kept(found)))
    for item in items:
        assert not followed.is_valid(item) or original.is_valid(item)


def _kept(found: GrammarSchema) -> list[str]:
    """What is still there of what cannot be followed: `oneOf`, as one of several."""
    return [path for path in found.unenforced if path.endswith("oneOf")]
