"""Qwen-Agent calls: golden outputs, split everywhere; no text is ever lost."""

from protocol.tools.calls import CallArguments, CallBegin, Content, ToolEvent
from protocol.tools.qwen_agent import QwenAgentParser
from tests.protocol.tools.parsing import (
    TOOLS,
    call,
)

BEIJING = '{"city": "北京"}'
CALL = f"✿FUNCTION✿: get_weather\n✿ARGS✿: {BEIJING}"
NOW = "✿FUNCTION✿: now\n✿ARGS✿: {}"
UNKNOWN = "✿FUNCTION✿: rm\n✿ARGS✿: {}"
WEATHER = call("get_weather", BEIJING)

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "no call": ("你好！✿\n", [Content("你好！✿\n")]),
    "one": (CALL, WEATHER),
    "one, stopped": (f"我查一下。\n{CALL}\n", [Content("我查一下。"), *WEATHER]),
    "one with its result": (f"{CALL}\n✿RESULT✿: 晴", [*WEATHER, Content("晴")]),
    "parallel": (f"{CALL}\n{NOW}\n✿RESULT✿", [*WEATHER, *call("now")]),
    "text between": (f"{CALL}\nB\n{NOW}", [*WEATHER, Content("\nB"), *call("now")]),
    "text behind": (f"{CALL} // done", [*WEATHER, Content(" // done")]),
    "no colons": ("✿FUNCTION✿ now\n✿ARGS✿ {}", call("now")),
    "full-width colons": (f"✿FUNCTION✿：get_weather\n✿ARGS✿：{BEIJING}", WEATHER),
    "in one line": (f"✿FUNCTION✿: get_weather✿ARGS✿: {BEIJING}✿RESULT✿", WEATHER),
    "a fence": (f"✿FUNCTION✿: get_weather\n✿ARGS✿: ```json\n{BEIJING}\n```\n", WEATHER),
    "Python": ("✿FUNCTION✿: now\n✿ARGS✿: {'a': True}", call("now", '{"a": true}')),
    "markers in strings": (
        r"✿FUNCTION✿: 搜索" "\n" r'✿ARGS✿: {"词": "\"✿RESULT✿\" {✿FUNCTION✿: now🙂"}',
        call("搜索", r'{"词": "\"✿RESULT✿\" {✿FUNCTION✿: now🙂"}'),
    ),
    "brackets too few": (
        f'✿FUNCTION✿: get_weather\n✿ARGS✿: {{"hours": [1\n{NOW}',
        [*call("get_weather", '{"hours": [1\n]}'), *call("now")],
    ),
    "no JSON": (
        f"✿FUNCTION✿: now\n✿ARGS✿: print(1)\nprint(2)\n{NOW}",
        [CallBegin("now"), CallArguments("print(1)\nprint(2)"), *call("now")],
    ),
    "no arguments": (f"✿FUNCTION✿: now\n{NOW}\n✿FUNCTION✿: now\n", call("now") * 3),
    "empty arguments": (f"✿FUNCTION✿: now\n✿ARGS✿:\n{NOW}", call("now") * 2),
    "no arguments but text": ("✿FUNCTION✿: now\nWell", [*call("now"), Content("\nWell")]),
    "an answer": ("✿RETURN✿: 你好", [Content("你好")]),
    "text and an answer": ("a\n✿RETURN✿: b", [Content("a\nb")]),
    "a call and an answer": (f"{NOW}\n✿RETURN✿: b", [*call("now"), Content("b")]),
    "a result and no call": ("✿RESULT✿: 5", [Content("✿RESULT✿: 5")]),
    "made up": (f"{NOW}\n✿RESULT✿: 5\n{NOW}", [*call("now"), Content(f"5\n{NOW}")]),
    "unknown": (UNKNOWN, [Content(UNKNOWN)]),
    "unknown and known": (f"{UNKNOWN}\n{NOW}", [Content(UNKNOWN), *call("now")]),
    "more than a name": ("✿FUNCTION✿: nowhere\n", [Content("✿FUNCTION✿: nowhere\n")]),
    "cut in the name": ("✿FUNCTION✿: now", [Content("✿FUNCTION✿: now")]),
    "cut in a marker": ("✿FUNCTION✿: now\n✿AR", [CallBegin("now")]),
    "cut in the arguments": (
        '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "北',
        [CallBegin("get_weather"), CallArguments('{"city": "北')],
    ),
    "cut in the last marker": (f"{CALL}\n✿RES", WEATHER),
    "cut in the marker behind text": (
        "✿FUNCTION✿: now\n✿ARGS✿: a\n✿RES",
        [CallBegin("now"), CallArguments("a")],
    ),
}


MARKERS = (
    *("✿FUNCTION✿: ", "✿ARGS✿: ", "✿RESULT✿: ", "✿RETURN✿: ", "✿", "FUNCTION", CALL, NOW, UNKNOWN),
    *("✿FUNCTION✿: now\n", "✿FUNCTION✿: now\n✿ARGS✿:"),
)


def test_what_is_certain_is_sent_at_once() -> None:
    parser = QwenAgentParser(TOOLS)
    assert parser.feed("Hi ✿FUNCTION✿: now") == [Content("Hi")]
    assert parser.feed("\n") == [CallBegin("now")]
    assert parser.feed('✿ARGS✿: {"a') == [CallArguments('{"a')]
    assert parser.feed('": 1}\n') == [CallArguments('": 1}')]
    assert parser.feed("✿FUNCTION✿: rm") == [Content("\n✿FUNCTION✿: rm")]
