"""Qwen3-Coder calls: golden outputs, split everywhere; values by the schema; no text is lost."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tools.calls import CallArguments, CallBegin, Content, Tool, ToolEvent
from protocol.tools.qwen3_coder import Qwen3CoderParser
from tests.protocol.tools.parsing import (
    TOOLS,
    call,
    run,
)


def function(name: str, **arguments: str) -> str:
    """As the template writes a call."""
    values = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<function={name}>\n{values}</function>"


def block(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{function(name, **arguments)}\n</tool_call>"


CALL = block("get_weather", city="北京", days="3")
BEIJING = '{"city": "北京", "days": 3}'
NOW = block("now")
UNKNOWN = block("rm", code="<tool_call><function=now>")

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "no call": ("a < b\n", [Content("a < b\n")]),
    "one": (CALL, call("get_weather", BEIJING)),
    "with text": (
        f"我查一下。\n\n{CALL}\nok",
        [Content("我查一下。"), *call("get_weather", BEIJING), Content("\nok")],
    ),
    "parallel": (f"{CALL}\n{NOW}\n", call("get_weather", BEIJING) + call("now")),
    "in one line": (
        "<tool_call><function=get_weather><parameter=city>北京</parameter></function></tool_call>",
        call("get_weather", '{"city": "北京"}'),
    ),
    "lines and markers in a string": (
        block("搜索", 词='\n\ta "b" \\ </function></tool_call>🙂</para\n\n'),
        call("搜索", r'{"词": "\n\ta \"b\" \\ </function></tool_call>🙂</para\n\n"}'),
    ),
    "an empty string": (block("get_weather", city=""), call("get_weather", '{"city": ""}')),
    "an empty string in one line": (
        "<function=get_weather><parameter=city></parameter></function>",
        call("get_weather", '{"city": ""}'),
    ),
    "objects and arrays": (
        block("get_weather", limits='{"a": {"b": "}"}}', hours="[1, [2]]"),
        call("get_weather", '{"limits": {"a": {"b": "}"}}, "hours": [1, [2]]}'),
    ),
    "Python": (
        block("get_weather", limits="{'a': None}", is_celsius="True"),
        call("get_weather", '{"limits": {"a": null}, "is_celsius": true}'),
    ),
    "no tool_call": (f"Now.\n{function('now')}", [Content("Now."), *call("now")]),
    "no tool_call but its end": (f"{function('now')}\n</tool_call>", call("now")),
    "no end of the function": (
        "<tool_call><function=now></tool_call>a",
        [*call("now"), Content("a")],
    ),
    "no end at all": (
        f"<tool_call><function=now>\n{NOW}\n<function=now>\n{function('now')}",
        call("now") * 4,
    ),
    "cut in a string": (
        "<function=get_weather>\n<parameter=city>\n北京\n</para",
        [CallBegin("get_weather"), CallArguments('{"city": "北京')],
    ),
    "cut in an array": (
        "<function=get_weather>\n<parameter=hours>\n[1, 2",
        [CallBegin("get_weather"), CallArguments('{"hours": [1, 2')],
    ),
    "cut in a key": (
        "<function=get_weather>\n<parameter=ci",
        [CallBegin("get_weather"), CallArguments("{")],
    ),
    "cut in an end": (
        "<function=get_weather>\n</fun",
        [CallBegin("get_weather"), CallArguments("{")],
    ),
    "cut in the last end": (NOW.removesuffix("call>"), call("now")),
    "cut in the name": ("<tool_call>\n<function=no", [Content("<tool_call>\n<function=no")]),
    "text in a call": (
        "<function=get_weather>\nWell: <parameter=a b><parameter=city>\nx\n</parameter></function>",
        [
            CallBegin("get_weather"),
            CallArguments("{"),
            Content("\nWell: <parameter=a b>"),
            CallArguments('"city": "x"}'),
        ],
    ),
    "unknown": (UNKNOWN, [Content(UNKNOWN)]),
    "unknown and known": (f"{UNKNOWN}\n{NOW}", [Content(UNKNOWN), *call("now")]),
    "known and unknown": (f"{NOW}\n{UNKNOWN}", [*call("now"), Content(f"\n{UNKNOWN}")]),
    "no name": ("<function=>now", [Content("<function=>now")]),
    "Hermes": ('<tool_call>\n{"name": "now"}', [Content('<tool_call>\n{"name": "now"}')]),
    "a closing marker in JSON": (
        '<function=get_weather><parameter=hours>["</parameter>"]</parameter></function>',
        call("get_weather", '{"hours": ["</parameter>"]}'),
    ),
    "a quote that is not closed": (
        block("get_weather", hours='["a]') + "ok",
        [*call("get_weather", r'{"hours": "[\"a]"}'), Content("ok")],
    ),
    "a closing marker": ("</tool_call>", [Content("</tool_call>")]),
}


MARKERS = (
    *("<tool_call>", "</tool_call>", "<function=", "<function=now>", "</function>", ">", "<"),
    *("<parameter=", "</parameter>", "<parameter=city>", "<parameter=hours>\n", CALL, UNKNOWN),
)


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, " null ", " null "),
        ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
        ({"type": "integer"}, " 5 ", 5),
        ({"type": "integer"}, "5.0", 5.0),
        ({"type": "integer"}, "five", "five"),
        ({"type": "number"}, "-1.5e3", -1500.0),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "True or False", "True or False"),
        ({"type": "null"}, "None", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": ["string", "null"]}, '"a"', '"a"'),
        ({"type": "array"}, '"a"', "a"),
        ({"type": "array"}, "['a', 'it\\'s',]", ["a", "it's"]),
        ({"type": "array"}, "[1", "[1"),
        ({"type": "array"}, "[" * 100_000, "[" * 100_000),
        ({"type": "object"}, '{"a": [1, {"b": "}"}]}', {"a": [1, {"b": "}"}]}),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"type": "object"}, '{"a": "</parameter>"}', {"a": "</parameter>"}),
        (
            {"type": "array"},
            '["</parameter>", "</parameter>\\""]',
            ["</parameter>", '</parameter>"'],
        ),
        ({}, "5", 5),
        ({}, "05", "05"),
        ({}, "北京", "北京"),
        ({}, '"a"', '"a"'),
    ],
)
def test_values_are_of_the_type_in_the_schema(schema: Any, value: str, expected: Any) -> None:
    tool = Tool("f", "", {"type": "object", "properties": {"a": schema}})
    parser = Qwen3CoderParser([tool])
    events = parser.feed(block("f", a=value)) + parser.flush()
    assert events[0] == CallBegin("f")
    arguments = "".join(e.text for e in events[1:] if isinstance(e, CallArguments))
    assert json.loads(arguments) == {"a": expected}
    assert type(json.loads(arguments)["a"]) is type(expected)


@given(
    st.dictionaries(
        st.sampled_from(["city", "days", "limits", "is_celsius", "hours"]), st.text(), max_size=4
    )
)
def test_arguments_are_always_json(arguments: dict[str, str]) -> None:
    arguments = {k: v.replace("</parameter>", "") for k, v in arguments.items()}
    events = run(Qwen3CoderParser, list(block("get_weather", **arguments)))
    _, given = events
    assert isinstance(given, CallArguments)
    result = json.loads(given.text)
    assert list(result) == list(arguments)
    assert result.get("city") == arguments.get("city")


def test_what_is_certain_is_sent_at_once() -> None:
    parser = Qwen3CoderParser(TOOLS)
    assert parser.feed("<tool_call>\n<function=get_weather") == []
    assert parser.feed(">") == [CallBegin("get_weather"), CallArguments("{")]
    assert parser.feed("\n<parameter=city>") == [CallArguments('"city": ')]
    assert parser.feed("\nBei") == [CallArguments('"Bei')]
    assert parser.feed("jing\n</par") == [CallArguments("jing")]
    assert parser.feed("ameter>\n<parameter=hours>\n[1") == [CallArguments('", "hours": ')]
    assert parser.feed("]\n</parameter>") == [CallArguments("[1]")]
    assert parser.feed("\n</function>") == [CallArguments("}")]
