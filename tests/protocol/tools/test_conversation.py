"""Which messages may follow which, where tools are called."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from protocol.tools.conversation import check_tool_messages, has_tool_messages
from protocol.validation import InvalidField


@dataclass
class Turn:
    role: str
    result_of: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)


def turns(written: str) -> list[Turn]:
    """u: a user; a: an answer; a1,2: one that calls; t1: a result; f: a call of before there were
    ids; r: its result.
    """
    result = []
    for word in written.split():
        ids = word[1:].split(",") if word[1:] else []
        match word[0]:
            case "u":
                result.append(Turn("user"))
            case "a":
                result.append(Turn("assistant", calls=[{"id": f"id-{i}"} for i in ids]))
            case "t":
                result.append(Turn("tool", f"id-{ids[0]}" if ids else None))
            case "f":
                result.append(Turn("assistant", calls=[{"name": "f"}]))
            case "r":
                result.append(Turn("function"))
    return result


@pytest.mark.parametrize(
    "written",
    [
        *("", "u", "u a u", "u a1 t1", "u a1 t1 a u", "u a1,2 t2 t1 u", "u a1 t1 a1 t1"),
        *("u a1,1 t1 t1", "u f r", "u f u", "a1 t1"),
    ],
)
def test_histories(written: str) -> None:
    check_tool_messages(turns(written))


@pytest.mark.parametrize(
    ("written", "param", "problem"),
    [
        ("t1", "messages[0].role", "must be a response to a preceding message"),
        ("u t1", "messages[1].role", "must be a response"),
        ("u a t1", "messages[2].role", "must be a response"),
        ("u f t1", "messages[2].role", "must be a response"),
        ("u a1 t1 u t1", "messages[4].role", "must be a response"),
        ("u a1 t2", "messages[2].tool_call_id", "'id-2' is not a call"),
        ("u a1 t", "messages[2].tool_call_id", "'' is not a call"),
        ("u a1 t1 t1", "messages[3].tool_call_id", "'id-1' is not a call"),
        ("u a1", "messages", "did not have response messages: id-1"),
        ("u a1 u t1", "messages", "did not have response messages: id-1"),
        ("u a1,2,3 t2 u", "messages", "did not have response messages: id-1, id-3"),
        ("u a1 a2 t2", "messages", "did not have response messages: id-1"),
    ],
)
def test_what_is_wrong_with_a_history(written: str, param: str, problem: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_tool_messages(turns(written))
    assert caught.value.context is not None
    assert problem in caught.value.context["message"]
    assert caught.value.context["param"] == param


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], False),
        ([{"role": "user"}, {"role": "assistant", "tool_calls": []}], False),
        ([{"role": "assistant", "tool_calls": [{}]}], True),
        ([{"role": "tool"}], True),
    ],
)
def test_whether_there_is_one(messages: list[dict[str, Any]], expected: bool) -> None:
    assert has_tool_messages(messages) == expected
