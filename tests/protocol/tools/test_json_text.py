"""JSON values in a text: where they end, JSON as it is, Python's way of writing put right."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tools.json_text import JsonText, to_json

_STOP = "</stop>"
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["</stop>", "'", '"', "\\", "{[", ",}", "True", "北京🙂"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)

written = st.text(
    "ab'\"\\\n{}，🙂"
)  # what repr() writes as it is, and what it escapes as JSON does


def read(value: JsonText, text: str) -> tuple[str, str]:
    """The strict JSON and what is left, fed one character at a time, nothing read twice."""
    result, rest = "", ""
    for end in range(1, len(text) + 1):
        rest += text[end - 1]
        piece, used = value.read(rest, 0, is_final=end == len(text))
        result, rest = result + piece, rest[used:]
        if value.is_complete:
            return result, rest + text[end:]
    return result, rest


@given(values, st.sampled_from([None, 1]), st.booleans(), st.sampled_from([",", "}", "\n", "]"]))
def test_json_is_passed_as_it_is(item: Any, indent: int | None, is_ascii: bool, after: str) -> None:
    text = json.dumps(item, indent=indent, ensure_ascii=is_ascii)
    value = JsonText([_STOP])
    assert read(value, text + after + "x") == (text, after + "x")
    assert value.is_complete
    assert to_json(text) == text


@given(st.dictionaries(written, written | st.none() | st.booleans() | st.lists(written)))
def test_python_becomes_json(item: dict[str, Any]) -> None:
    text = repr(item)
    result, rest = read(JsonText(), text + "rest")
    assert (json.loads(result), rest) == (item, "rest")


@pytest.mark.parametrize(
    ("text", "strict", "rest"),
    [
        ('{"a": 1,}', '{"a": 1}', ""),
        ("[1, 2 , ]x", "[1, 2  ]", "x"),
        ('{"code": "a\nb\tc"}', '{"code": "a\\nb\\tc"}', ""),
        (r'{"re": "\d\'"}', r'{"re": "\\d' + "'\"}", ""),
        ("{'a': 'say \"hi\"', 'b': 'it\\'s'}", '{"a": "say \\"hi\\"", "b": "it\'s"}', ""),
        ("[True, None, False, Truth, NaN]", "[true, null, false, Truth, NaN]", ""),
        ('{"a": "</stop>"}', '{"a": "</stop>"}', ""),
        ('{"a": [1</stop>b', '{"a": [1]}', "</stop>b"),
        ('{"a": 1, </stop>', '{"a": 1 }', "</stop>"),
        ('{"a": </sto', '{"a": </sto', ""),  # the text ends: what is there is passed on
        ('{"a": "b\\', '{"a": "b\\', ""),
        ('{"a": Tr', '{"a": Tr', ""),
        ("12, ", "12", ", "),
        ("True}", "true", "}"),
        ('"a\\"b" ', '"a\\"b"', " "),
        ("", "", ""),
    ],
)
def test_examples(text: str, strict: str, rest: str) -> None:
    assert read(JsonText([_STOP]), text) == (strict, rest)
    whole, end = JsonText([_STOP]).read(text, 0, is_final=True)
    assert (whole, text[end:]) == (strict, rest)


@given(st.text("{}[]\"'\\,:</stop>TrueNone \n1"))
def test_all_splits_are_one(text: str) -> None:
    whole, end = JsonText([_STOP]).read(text, 0, is_final=True)
    if text:
        assert read(JsonText([_STOP]), text) == (whole, text[end:])
