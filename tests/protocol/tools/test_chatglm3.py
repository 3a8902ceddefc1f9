"""ChatGLM3 calls: golden outputs, split everywhere; Python is parsed and never run."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tools.calls import CallArguments, CallBegin, Content, ToolEvent
from protocol.tools.chatglm3 import ChatGLM3Parser
from tests.protocol.tools.parsing import (
    TOOLS,
    call,
    run,
)


def written(name: str, arguments: str) -> str:
    return f"{name}\n ```python\ntool_call({arguments})\n```"


CALL = written("get_weather", "city='北京'")
NOW = written("now", "")
UNKNOWN = written("rm", "a='now'")
WEATHER = call("get_weather", '{"city": "北京"}')

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "no call": ("\n 你好！\n", [Content("\n 你好！\n")]),
    "one": (CALL, WEATHER),
    "after the role": (f"<|assistant|>{CALL}\n", WEATHER),
    "after text and the role": (
        f"\n 我查一下。<|assistant|>{CALL}",
        [Content("\n 我查一下。"), *WEATHER],
    ),
    "in a new line": (f"我查一下。\n{CALL}", [Content("我查一下。"), *WEATHER]),
    "several": (f"{CALL}\n<|assistant|> {NOW}", [*WEATHER, *call("now")]),
    "several lines": (f"{CALL}\n{NOW}\n", [*WEATHER, *call("now")]),
    "text behind": (f"{CALL}\nok", [*WEATHER, Content("\nok")]),
    "no fence": ("now\ntool_call()", call("now")),
    "no end of the fence": ("now\n```python\ntool_call()", call("now")),
    "half an end of the fence": ("now\n```python\ntool_call()\n``", call("now")),
    "no language": ("now \n```\ntool_call()\n```", call("now")),
    "all literals": (
        written(
            "get_weather",
            "city=\"it's\", days=-3, is_celsius=True, hours=[1.5, None, (2,)],\n limits={'a': {}},",
        ),
        call(
            "get_weather",
            '{"city": "it\'s", "days": -3, "is_celsius": true, '
            '"hours": [1.5, null, [2]], "limits": {"a": {}}}',
        ),
    ),
    "parentheses, quotes and markers in strings": (
        written("搜索", r"词='a) \' \\' " "'\"\\d🙂```<|assistant|>now\\n'"),
        call("搜索", r'{"词": "a) ' "' " r'\\\"\\d🙂```<|assistant|>now\n"}'),
    ),
    "long strings": (
        written("搜索", '词=\'\'\'it\'s\n""" )\'\'\', b="""\\""""'),
        call("搜索", '{"词": "it\'s\\n\\"\\"\\" )", "b": "\\""}'),
    ),
    "an empty string": (written("搜索", "词='', b=\"\""), call("搜索", '{"词": "", "b": ""}')),
    "JSON": (
        written(
            "get_weather", r'city="\/\u5317\ud83d\ude00", is_celsius=true, limits={"a": [null]}'
        ),
        call("get_weather", '{"city": "/北😀", "is_celsius": true, "limits": {"a": [null]}}'),
    ),
    "JSON and Python in one": (
        written("get_weather", "hours=[true, None, 'a', {\"b\": false, 'c': null}], days=-1.5e1,"),
        call("get_weather", '{"hours": [true, null, "a", {"b": false, "c": null}], "days": -15.0}'),
    ),
    "escapes of Python": (
        written("搜索", r"""a="\x41\/", b='\/', c='\N{BULLET}', d='\ud83d\ude00', e='\udc00'"""),
        call("搜索", r'{"a": "A\\/", "b": "\\/", "c": "•", "d": "\ud83d\ude00", "e": "\udc00"}'),
    ),
    "half a character in JSON": (
        written("搜索", r'词="\ud83dx"'),
        call("搜索", r'{"词": "\ud83dx"}'),
    ),
    "names that Python has not": (
        written("搜索", "from='a', **{'b-c': \"d\"}"),
        call("搜索", '{"from": "a", "b-c": "d"}'),
    ),
    "commas and equals signs in values": (
        written("搜索", "a='b=c, d', b = [1, {'e': 2}] , c=(3,)"),
        call("搜索", '{"a": "b=c, d", "b": [1, {"e": 2}], "c": [3]}'),
    ),
    "larger than Python's numbers": (
        written("now", "a=1e999, b=[-1e999]"),
        call("now", '{"a": 1.7976931348623157e+308, "b": [-1.7976931348623157e+308]}'),
    ),
    "one object": (
        written("now", '**{"a b": 1, "from": ""}'),
        call("now", '{"a b": 1, "from": ""}'),
    ),
    "another blank behind the name": (
        "now\x0b\ntool_call()",
        [Content("now\x0b\ntool_call()")],
    ),
    "unknown": (UNKNOWN, [Content(UNKNOWN)]),
    "unknown and known": (f"{UNKNOWN}\n{NOW}", [Content(UNKNOWN), *call("now")]),
    "a name in a line": ("now\nand then", [Content("now\nand then")]),
    "a name and other code": (
        "now\n```python\nprint()\n```",
        [Content("now\n```python\nprint()\n```")],
    ),
    "more than a name": ("nowhere\n```", [Content("nowhere\n```")]),
    "less than a name": ("no\n```", [Content("no\n```")]),
    "a role": ("a<|assistant|>\n b<|assi", [Content("a<|assistant|>\n b<|assi")]),
    "cut in the head": ("now\n```python\ntool_c", [Content("now\n```python\ntool_c")]),
    "cut in the name": ("no", [Content("no")]),
    "cut in a string": (
        "get_weather\n```python\ntool_call(city='北",
        [CallBegin("get_weather"), CallArguments("city='北")],
    ),
    "cut in an escape": (
        "get_weather\n```python\ntool_call(city='北\\",
        [CallBegin("get_weather"), CallArguments("city='北\\")],
    ),
}


@pytest.mark.parametrize(
    "arguments",
    [
        "'北京'",
        "**{1: 2}",
        "**[1]",
        "city=1, **{'city': 1}",
        ",",
        "city=1,,",
        "a b=1",
        "1=1",
        "city=tru",
        "city=NaN",
        "city=__import__('os').getcwd()",
        "city=name",
        "city=[1e999, None]",
        "city={1, 2}",
        "city=b'a'",
        "city={(1,): 2}",
        "city=",
        "city==1",
        "a=1, a=2",
        "city=(1]",
        "a=b)(b=2",
        "a=" + "9" * 5000,
        "a=" + "[" * 90 + "]" * 90 + "x",
        "a=" + "[" * 101 + "]" * 101,
        "a=" + "[" * 100_000 + "]" * 100_000,
        "a=" + "-" * 100_000 + "1",
        "a='\0'",
    ],
)
def test_what_is_no_literal_by_name_is_passed_as_it_is(arguments: str) -> None:
    events = run(ChatGLM3Parser, [written("now", arguments)])
    assert events[0] == CallBegin("now")
    given = events[1]
    assert isinstance(given, CallArguments)
    assert given.text == arguments.partition(")(")[0]


python_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["city", "days", "词"]), python_values))
def test_python_literals(arguments: dict[str, Any]) -> None:
    text = written("get_weather", ", ".join(f"{k}={v!r}" for k, v in arguments.items()))
    events = run(ChatGLM3Parser, list(text))
    _, given = events
    assert isinstance(given, CallArguments)
    assert json.loads(given.text) == arguments
    assert run(ChatGLM3Parser, [text]) == events


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # of any code points, so that there are halves of a character and pairs of them
    | st.lists(st.sampled_from("a\"'\\/\n\u2028\ud83d\ude00\udc00北")).map("".join),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["city", "from", "词"]), json_values))
def test_json_values(arguments: dict[str, Any]) -> None:
    """What is given as JSON means the same, and can be sent."""
    values = ((name, json.dumps(value)) for name, value in arguments.items())
    events = run(ChatGLM3Parser, [written("now", ", ".join(f"{n}={v}" for n, v in values))])
    _, given = events
    assert isinstance(given, CallArguments)
    assert json.loads(given.text.encode()) == json.loads(json.dumps(arguments))


MARKERS = (
    *("<|assistant|>", "\nnow\n", "```python\n", "tool_call(", ")", "(", "city=", CALL, NOW),
    *("'''", "'", "<|assistant|>now\n ```python\ntool_call(", UNKNOWN, "1", "**"),
)


def test_what_is_certain_is_sent_at_once() -> None:
    parser = ChatGLM3Parser(TOOLS)
    assert parser.feed("Hi no") == [Content("Hi no")]
    assert parser.feed("w\nnow") == [Content("w")]
    assert parser.feed("\n ```python\ntool_call") == []
    assert parser.feed("(") == [CallBegin("now")]
    assert parser.feed("a=1") == []
    assert parser.feed(")") == [CallArguments('{"a": 1}')]
    assert parser.feed("\n```") == []
    assert parser.flush() == []
