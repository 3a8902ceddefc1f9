"""Hermes calls: golden outputs, split everywhere; no text is ever lost."""

import json

from protocol.tools.calls import CallArguments, CallBegin, Content, ToolEvent
from protocol.tools.hermes import HermesParser
from tests.protocol.tools.parsing import (
    TOOLS,
    call,
)


def block(json_text: str) -> str:
    return f"<tool_call>\n{json_text}\n</tool_call>"


BEIJING = '{"city": "北京"}'
CALL = block(f'{{"name": "get_weather", "arguments": {BEIJING}}}')
NOW = block('{"name": "now", "arguments": {}}')
UNKNOWN = block('{"name": "rm", "arguments": {"code": "<tool_call>{\\"name\\": \\"now\\"}"}}')

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "no call": ("你好！\n", [Content("你好！\n")]),
    "one": (CALL, call("get_weather", BEIJING)),
    "one with text": (
        f"我查一下。\n\n{CALL}\n",
        [Content("我查一下。"), *call("get_weather", BEIJING)],
    ),
    "parallel": (f"{CALL}\n{NOW}", [*call("get_weather", BEIJING), *call("now")]),
    "text between": (
        f"A\n{CALL}\nB 🙂\n{NOW} C",
        [
            *[Content("A"), *call("get_weather", BEIJING), Content("\nB 🙂")],
            *[*call("now"), Content(" C")],
        ],
    ),
    "arguments first": (
        block(f'{{"arguments": {BEIJING}, "name": "get_weather"}}'),
        call("get_weather", BEIJING),
    ),
    "other keys": (
        block(f'{{"type": "function", "id": [1], "name": "get_weather", "parameters": {BEIJING}}}'),
        call("get_weather", BEIJING),
    ),
    "no arguments": (f"{block(json.dumps({'name': 'now'}))}\n{NOW}", [*call("now"), *call("now")]),
    "null": (block('{"name": "now", "arguments": null}'), call("now")),
    "empty string": (block('{"arguments": "", "name": "now"}'), call("now")),
    "encoded twice": (
        block(json.dumps({"name": "get_weather", "arguments": BEIJING})),
        call("get_weather", BEIJING),
    ),
    "encoded twice, and Python": (
        block('{"name": "now", "arguments": "{\'a\': None}"}'),
        call("now", '{"a": null}'),
    ),
    "encoded twice, and cut": (
        r'<tool_call>{"name": "get_weather", "arguments": "{\"city\"',
        [CallBegin("get_weather"), CallArguments(r'"{\"city\"')],
    ),
    "a string": (block('{"name": "now", "arguments": "now"}'), call("now", '"now"')),
    "a list": (block('{"name": "now", "arguments": [1, "]"]}'), call("now", '[1, "]"]')),
    "nested": (
        block('{"name": "get_weather", "arguments": {"limits": {"a": [{"b": "}]"}]}}}'),
        call("get_weather", '{"limits": {"a": [{"b": "}]"}]}}'),
    ),
    "quotes and markers in strings": (
        block(r'{"name": "搜索", "arguments": {"词": "a \"</tool_call>\" \\ <tool_call>{🙂"}}'),
        call("搜索", r'{"词": "a \"</tool_call>\" \\ <tool_call>{🙂"}'),
    ),
    "escapes": (
        block(r'{"name": "\u641c\u7d22", "arguments": {"词": "\u5317\ud83d\ude00\n"}}'),
        call("搜索", r'{"词": "\u5317\ud83d\ude00\n"}'),
    ),
    "white space": (
        '<tool_call>{ "name" :\n"now"\t, "arguments" : { } }</tool_call>',
        call("now", "{ }"),
    ),
    "Python": (
        block("{'name': 'get_weather', 'arguments': {'city': \"it's\", 'is_celsius': True,}}"),
        call("get_weather", '{"city": "it\'s", "is_celsius": true}'),
    ),
    "no closing marker": (CALL.removesuffix("</tool_call>"), call("get_weather", BEIJING)),
    "half a closing marker": (CALL.removesuffix("call>"), call("get_weather", BEIJING)),
    "no closing marker between": (
        CALL.replace("</tool_call>", NOW),
        [*call("get_weather", BEIJING), *call("now")],
    ),
    "a closing marker too many": (f"{NOW}</tool_call>", [*call("now"), Content("</tool_call>")]),
    "a bracket too many": (
        block('{"name": "now", "arguments": {}}}') + NOW,
        [*call("now"), Content("}"), *call("now")],
    ),
    "a bracket too few": (block('{"name": "now", "arguments": {}'), call("now")),
    "two brackets too few": (
        block('{"name": "get_weather", "arguments": {"hours": [1, 2]') + "ok",
        [*call("get_weather", '{"hours": [1, 2]\n}'), Content("ok")],
    ),
    "unknown": (UNKNOWN, [Content(UNKNOWN)]),
    "unknown, arguments first": (
        block('{"arguments": {"a": "<tool_call>"}, "name": "rm"}'),
        [Content(block('{"arguments": {"a": "<tool_call>"}, "name": "rm"}'))],
    ),
    "unknown and known": (f"{UNKNOWN}\n{NOW}", [Content(UNKNOWN), *call("now")]),
    "known and unknown": (f"{NOW}\n{UNKNOWN}", [*call("now"), Content(f"\n{UNKNOWN}")]),
    "nameless": (block('{"arguments": {}}'), [Content(block('{"arguments": {}}'))]),
    "a number as name": (block('{"name": 1}'), [Content(block('{"name": 1}'))]),
    "no string as key": (block("{1: 2}"), [Content(block("{1: 2}"))]),
    "a bad escape": (block(r'{"name": "\uZZZZ"}'), [Content(block(r'{"name": "\uZZZZ"}'))]),
    "no JSON": (
        f"<tool_call>now</tool_call>{NOW}",
        [Content("<tool_call>now</tool_call>"), *call("now")],
    ),
    "marker twice": (f"<tool_call>\n{NOW}", [Content("<tool_call>\n"), *call("now")]),
    "no JSON behind the name": (
        '<tool_call>{"name": "now" and so on</tool_call>',
        [*call("now"), Content(" and so on")],
    ),
    "a key twice": (
        '<tool_call>{"name": "now", "arguments": {}, "arguments": 1}</tool_call>',
        [*call("now"), Content(', "arguments": 1}')],
    ),
    "cut in the name": ('<tool_call>\n{"name": "no', [Content('<tool_call>\n{"name": "no')]),
    "cut behind the name": ('<tool_call>\n{"name": "now"', [CallBegin("now")]),
    "cut before the arguments": ('<tool_call>\n{"name": "now", "argu', [CallBegin("now")]),
    "cut behind the colon": ('<tool_call>\n{"name": "now", "arguments": ', [CallBegin("now")]),
    "cut in the arguments": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北',
        [CallBegin("get_weather"), CallArguments('{"city": "北')],
    ),
    "half a marker": ("a <b> <tool_cal", [Content("a <b> <tool_cal")]),
}


MARKERS = ("<tool_call>", "</tool_call>", "<tool_call>\n{", CALL, NOW, UNKNOWN)


def test_what_is_certain_is_sent_at_once() -> None:
    parser = HermesParser(TOOLS)
    assert parser.feed("Hi <") == [Content("Hi")]
    assert parser.feed("b> ") == [Content(" <b>")]
    assert parser.feed('\n<tool_call>\n{"name": "now') == []
    assert parser.feed('"') == [CallBegin("now")]
    assert parser.feed(', "arguments": {"a') == [CallArguments('{"a')]
    assert parser.feed('": "</tool') == [CallArguments('": "</tool')]
    assert parser.feed('"}}\n</tool_call>\n<tool_call>{"name": "rm"') == [
        CallArguments('"}'),
        Content('\n<tool_call>{"name": "rm"'),
    ]
    assert parser.feed(', "a": "b') == [Content(', "a": "b')]
    assert parser.flush() == []
