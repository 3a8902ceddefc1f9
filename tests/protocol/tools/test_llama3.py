"""Llama 3 calls: golden outputs, split everywhere; no text is ever lost."""

from protocol.tools.calls import CallArguments, CallBegin, Content, ToolEvent
from protocol.tools.llama3 import Llama3Parser
from tests.protocol.tools.parsing import (
    TOOLS,
    call,
)

TAG = "<|python_tag|>"
BEIJING = '{"city": "北京"}'
CALL = f'{{"name": "get_weather", "parameters": {BEIJING}}}'
NOW = '{"name": "now", "parameters": {}}'
UNKNOWN = '{"name": "rm", "parameters": {"a": "; {"}}'

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "no call": ("你好！\n", [Content("你好！\n")]),
    "one": (CALL, call("get_weather", BEIJING)),
    "with a tag": (f"\n\n{TAG}{CALL}", call("get_weather", BEIJING)),
    "with a type": (
        f'{{"type": "function", "name": "get_weather", "parameters": {BEIJING}}}\n',
        call("get_weather", BEIJING),
    ),
    "several": (
        f"{CALL}; {NOW};{CALL}",
        call("get_weather", BEIJING) + call("now") + call("get_weather", BEIJING),
    ),
    "several with tags": (f"{TAG}{CALL}{TAG}{NOW}", call("get_weather", BEIJING) + call("now")),
    "several lines": (f"{CALL}\n{NOW}\n", call("get_weather", BEIJING) + call("now")),
    "arguments": ('{"arguments": {}, "name": "now"}', call("now")),
    "semicolons in strings": (
        r'{"name": "搜索", "parameters": {"词": "a; \"{🙂"}}',
        call("搜索", r'{"词": "a; \"{🙂"}'),
    ),
    "text behind": (f"{NOW} Done;", [*call("now"), Content(" Done;")]),
    "text before": (f"Sure: {NOW}", [Content(f"Sure: {NOW}")]),
    "unknown": (UNKNOWN, [Content(UNKNOWN)]),
    "unknown and known": (f"{UNKNOWN}; {NOW}", [Content(UNKNOWN), *call("now")]),
    "other JSON": ('{"answer": [1, 2]}\n', [Content('{"answer": [1, 2]}\n')]),
    "code": (f'{TAG}search.call(q="a")', [Content(f'{TAG}search.call(q="a")')]),
    "half a tag": ("<|python", [Content("<|python")]),
    "a tag behind broken arguments": (
        f'{{"name": "get_weather", "parameters": {{"hours": [1{TAG}{NOW}',
        call("get_weather", '{"hours": [1]}') + call("now"),
    ),
    "cut": (
        f'{TAG}{{"name": "get_weather", "parameters": {{"city": "',
        [CallBegin("get_weather"), CallArguments('{"city": "')],
    ),
}


MARKERS = (TAG, TAG, ";", "; ", CALL, NOW, UNKNOWN)


def test_what_is_certain_is_sent_at_once() -> None:
    parser = Llama3Parser(TOOLS)
    assert parser.feed("\n<|python_tag|>") == []
    assert parser.feed('{"name": "now"') == [CallBegin("now")]
    assert parser.feed(', "parameters": {"a') == [CallArguments('{"a')]
    assert parser.feed('": 1}}; ') == [CallArguments('": 1}')]
    assert parser.feed("No") == [Content("; No")]
    assert parser.feed(' {"name": "now"}') == [Content(' {"name": "now"}')]
