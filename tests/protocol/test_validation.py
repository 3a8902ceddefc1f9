"""Raw bodies into models; pydantic's errors into OpenAI's code, param and message."""

import json
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, Tag

from protocol.errors import InvalidRequest
from protocol.sampling import RequestModel, one_of
from protocol.validation import BRANCH, InvalidField, parse


class Part(RequestModel):
    text: str


class Item(RequestModel):
    content: Annotated[
        Annotated[str, Tag(BRANCH + "string")] | Annotated[list[Part], Tag(BRANCH + "array")],
        one_of("one of a string or array of objects"),
    ]


class Body(RequestModel):
    items: list[Item] | None = None
    ratio: Annotated[float, Field(gt=0.0, le=2.5)] | None = None
    count: Annotated[int, Field(ge=1, lt=9)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=3)] | None = None
    flag: bool | None = None
    names: Annotated[list[str], Field(min_length=1, max_length=2)] | None = None
    labels: Annotated[dict[str, str], Field(max_length=1)] | None = None


def items_of(body: Body) -> list[Item]:
    assert body.items is not None
    return body.items


def refusal(body: object) -> tuple[str | None, str | None, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidRequest) as raised:
        parse(Body, raw)
    assert raised.value.status == 400
    assert raised.value.type == "invalid_request_error"
    return raised.value.code, raised.value.param, raised.value.message


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        ({"items": [{}]}, "missing_required_parameter", "items[0].content",
         "Missing required parameter: 'items[0].content'."),
        ({"x": 1}, "unknown_parameter", "x", "Unknown parameter: 'x'."),
        ({"items": [{"content": [{"text": "", "y": 1}]}]}, "unknown_parameter",
         "items[0].content[0].y", "Unknown parameter: 'items[0].content[0].y'."),
        ({"items": [{"content": 1}]}, "invalid_type", "items[0].content",
         "Invalid type for 'items[0].content': expected one of a string or array of objects, "
         "but got an integer instead."),
        ({"items": [{"content": [1]}]}, "invalid_type", "items[0].content[0]",
         "Invalid type for 'items[0].content[0]': expected an object, but got an integer instead."),
        ({"items": {}}, "invalid_type", "items",
         "Invalid type for 'items': expected an array, but got an object instead."),
        ({"ratio": "1"}, "invalid_type", "ratio",
         "Invalid type for 'ratio': expected a decimal, but got a string instead."),
        ({"ratio": True}, "invalid_type", "ratio",
         "Invalid type for 'ratio': expected a decimal, but got a boolean instead."),
        ({"count": 1.5}, "invalid_type", "count",
         "Invalid type for 'count': expected an integer, but got a decimal instead."),
        ({"count": [1]}, "invalid_type", "count",
         "Invalid type for 'count': expected an integer, but got an array instead."),
        ({"flag": 1}, "invalid_type", "flag",
         "Invalid type for 'flag': expected a boolean, but got an integer instead."),
        ({"names": [None]}, "invalid_type", "names[0]",
         "Invalid type for 'names[0]': expected a string, but got null instead."),
        ({"ratio": 3}, "decimal_above_max_value", "ratio",
         "Invalid 'ratio': decimal above maximum value. Expected a value <= 2.5, but got 3 "
         "instead."),
        ({"ratio": 0}, "decimal_below_min_value", "ratio",
         "Invalid 'ratio': decimal below minimum value. Expected a value > 0, but got 0 instead."),
        ({"count": 0}, "integer_below_min_value", "count",
         "Invalid 'count': integer below minimum value. Expected a value >= 1, but got 0 instead."),
        ({"count": 10**30}, "integer_above_max_value", "count",
         f"Invalid 'count': integer above maximum value. Expected a value < 9, but got {10**30} "
         "instead."),
        ({"name": ""}, "empty_string", "name",
         "Invalid 'name': empty string. Expected a string with minimum length 1."),
        ({"name": "abcd"}, "string_above_max_length", "name",
         "Invalid 'name': string too long. Expected a string with maximum length 3."),
        ({"names": []}, "empty_array", "names",
         "Invalid 'names': empty array. Expected an array with minimum length 1."),
        ({"names": ["a"] * 3}, "array_above_max_length", "names",
         "Invalid 'names': array too long. Expected an array with maximum length 2."),
        ({"labels": {"a": "", "b": ""}}, "object_above_max_properties", "labels",
         "Invalid 'labels': too many properties. Expected an object with maximum length 1."),
        ({"labels": {"a": 1}}, "invalid_type", "labels.a",
         "Invalid type for 'labels.a': expected a string, but got an integer instead."),
    ],
)  # fmt: skip
def test_field_errors(body: object, code: str, param: str, message: str) -> None:
    assert refusal(body) == (code, param, message)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"ratio": NaN}',
        b'{"ratio": Infinity}',
        b'{"ratio": 1e999}',
        b'{"count": ' + b"9" * 5000 + b"}",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
        b'{"items":' * 50_000,
        b"{} {}",
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_what_is_no_json(raw: bytes) -> None:
    code, param, message = refusal(raw)
    assert (code, param) == (None, None)
    assert message.startswith("We could not parse the JSON body of your request.")


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"a"', b"null", b"true"])
def test_what_is_no_object(raw: bytes) -> None:
    code, _, message = refusal(raw)
    assert code == "invalid_type"
    assert "expected an object" in message


def test_the_last_of_equal_keys_counts() -> None:
    assert parse(Body, b'{"count": 1, "count": 2}')[0].count == 2


def test_an_integer_is_a_decimal_and_null_is_absent() -> None:
    body, ignored = parse(Body, b'{"ratio": 2, "count": null}')
    assert (body.ratio, body.count, ignored) == (2.0, None, [])


def test_warn_leaves_unknown_fields_out_and_lists_them() -> None:
    raw = {"a": 1, "count": 2, "items": [{"content": [{"text": "t", "b": 2}], "c": {}}]}
    body, ignored = parse(Body, json.dumps(raw).encode(), "warn")
    assert body.count == 2
    assert items_of(body)[0].content == [Part(text="t")]
    assert sorted(ignored) == ["a", "items[0].c", "items[0].content[0].b"]


def test_warn_still_refuses_what_is_wrong() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(Body, b'{"a": 1, "count": "x"}', "warn")
    assert raised.value.param == "count"


def test_a_field_named_as_a_union_branch() -> None:
    raw = {"items": [{"content": "t", BRANCH + "string": 1}]}
    body, ignored = parse(Body, json.dumps(raw).encode(), "warn")
    assert items_of(body)[0].content == "t"
    assert len(ignored) == 1


def test_a_message_with_braces() -> None:
    error = InvalidField("invalid_value", "bad {key} {}", "labels")
    assert error.context == {"message": "bad {key} {}", "param": "labels"}
    assert error.message() == "bad {key} {}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*Body.model_fields, "x"]), json_values), st.booleans())
def test_any_json_is_taken_or_refused(body: dict[str, object], warn: bool) -> None:
    raw = json.dumps(body).encode(errors="surrogatepass")
    try:
        parse(Body, raw, "warn" if warn else "refuse")
    except InvalidRequest as error:
        assert error.message
