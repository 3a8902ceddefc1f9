"""Runs of tool call parsers, and what has to hold for each of them."""

import json
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from protocol.tools.calls import (
    CallArguments,
    CallBegin,
    Content,
    Tool,
    ToolCallParser,
    ToolEvent,
    joined,
)

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "limits": {"type": "object"},
            "hours": {"type": "array"},
            "is_celsius": {"type": "boolean"},
        },
    },
)
NOW = Tool("now", "The time", {"type": "object", "properties": {}})
SEARCH = Tool(
    "搜索", "Search the web", {"type": "object", "properties": {"词": {"type": "string"}}}
)
TOOLS = (WEATHER, NOW, SEARCH)

Format = Callable[[Sequence[Tool]], ToolCallParser]


def run(make: Format, pieces: Sequence[str]) -> list[ToolEvent]:
    parser = make(TOOLS)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined(events + parser.flush())


def parse(make: Format, text: str) -> list[ToolEvent]:
    """The events of `text`, which are those of one character at a time and of every cut in two."""
    events = run(make, [text])
    assert run(make, list(text)) == events
    for i in range(1, len(text)):
        assert run(make, [text[:i], text[i:]]) == events, (text[:i], text[i:])
    return events


def call(name: str, arguments: str = "{}") -> list[ToolEvent]:
    """A call with arguments that are JSON."""
    json.loads(arguments)
    return [CallBegin(name), CallArguments(arguments)]


def said(events: Sequence[ToolEvent]) -> str:
    """All that the events say."""
    return "".join(e.name if isinstance(e, CallBegin) else e.text for e in events)


def content(events: Sequence[ToolEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def cut(data: st.DataObject, text: str) -> list[str]:
    """`text` in pieces of any length, also empty ones."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]


WORDS = "甲é🙂ß"  # nothing of what any format writes itself


def fuzzed(*markers: str) -> st.SearchStrategy[str]:
    """Markers and pieces of calls in any order, with words between them."""
    common = [
        *("get_weather", "now", "nowhere", "搜索", "{", "}", "[", "]", '"', "'", "\\", "\n", " "),
        *(",", ":", "：", "```", "```json\n", "None", "Tr", '{"city": "甲}"}', "{'city': '🙂'}"),
        *('"name": "now"', '"arguments": ', '{"name": "get_weather", "arguments": {', "null"),
    ]
    pieces = st.sampled_from([*common, *markers]) | st.sampled_from(WORDS)
    return st.lists(pieces, max_size=14).map("".join)


def assert_nothing_is_lost(text: str, events: Sequence[ToolEvent]) -> None:
    output = said(events)
    assert [output.count(word) for word in WORDS] == [text.count(word) for word in WORDS]
    names = {event.name for event in events if isinstance(event, CallBegin)}
    assert names <= {tool.name for tool in TOOLS}
