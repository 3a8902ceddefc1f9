"""protocol/body_limits.py: what is counted, and that nothing of another type breaks it."""

import json
from typing import Any

import pytest

from protocol.body_limits import MAX_DEPTH, BodyLimits
from protocol.errors import InvalidRequest

LIMITS = BodyLimits(max_messages=3, max_content_parts=4, max_tools=2)
PARTS = [{"type": "text", "text": "a"}] * 2


def nested(depth: int) -> Any:
    """`depth` levels, lists and objects by turns."""
    value: Any = 0
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": [{}] * 3, "tools": [{}] * 2},
        {"messages": [{"content": PARTS}, {"content": PARTS}, {"content": "abcde"}]},
        {"messages": "abcdef", "tools": 7, "functions": {"a": 1, "b": 2, "c": 3}},
        {"messages": [1, None, {"content": {"a": 1}}]},
        {"a": nested(MAX_DEPTH - 1)},
    ],
)
def test_within(body: dict[str, object]) -> None:
    LIMITS.check(body)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": [{}] * 4}, "messages", "array_above_max_length"),
        ({"messages": [{"content": [0] * 3}] * 2}, "messages", "array_above_max_length"),
        ({"tools": [{}] * 3}, "tools", "array_above_max_length"),
        ({"functions": [{}] * 3}, "functions", "array_above_max_length"),
        ({"a": nested(MAX_DEPTH)}, None, "invalid_value"),
        ({"a": [1, "b", nested(MAX_DEPTH + 500)]}, None, "invalid_value"),
    ],
)
def test_beyond(body: dict[str, object], param: str | None, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        LIMITS.check(body)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert len(json.dumps(caught.value.message)) < 300
