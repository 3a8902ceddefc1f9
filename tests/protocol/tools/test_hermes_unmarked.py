"""Hermes calls without their markers: by themselves, in a fence, in tags of another name."""

from typing import Any

import pytest

from protocol.tools.calls import CallBegin, Content, ToolEvent
from protocol.tools.hermes import HermesParser
from tests.protocol.tools.parsing import TOOLS, call, run
from tests.protocol.tools.test_hermes import BEIJING, NOW

BARE = f'{{"name": "get_weather", "arguments": {BEIJING}}}'
BARE_NOW = '{"name": "now", "arguments": {}}'

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "bare": (BARE, call("get_weather", BEIJING)),
    "bare, behind text": (
        f"我查一下。\n\n  {BARE}\n",
        [Content("我查一下。"), *call("get_weather", BEIJING)],
    ),
    "bare, several": (
        f"{BARE}\n{BARE_NOW}, {BARE_NOW}",
        [*call("get_weather", BEIJING), *call("now") * 2],
    ),
    "bare, and its end": (f"{BARE_NOW}\n</tool_call>", call("now")),
    "bare, and marked": (f"{BARE_NOW}\n{NOW}", call("now") * 2),
    "bare, in Python": ("{'name': 'now', 'arguments': {'a': None}}", call("now", '{"a": null}')),
    "bare, of lines": (
        '{\n  "name": "now",\n  "arguments": {\n    "a": 1\n  }\n}',
        call("now", '{\n    "a": 1\n  }'),
    ),
    "bare, and text": (f"{BARE_NOW}\nDone.", [*call("now"), Content("\nDone.")]),
    "bare, in a line": (f"So: {BARE_NOW}", [Content(f"So: {BARE_NOW}")]),
    "bare, unknown": ('{"name": "rm"}', [Content('{"name": "rm"}')]),
    "bare, more than a name": ('{"name": "nowhere"}', [Content('{"name": "nowhere"}')]),
    "bare, less than a name": ('{"name": "no"}', [Content('{"name": "no"}')]),
    "bare, unknown and known": (
        f'{{"name": "rm"}}\n{BARE_NOW}',
        [Content('{"name": "rm"}'), *call("now")],
    ),
    "bare, the name not first": (
        '{"arguments": {}, "name": "now"}',
        [Content('{"arguments": {}, "name": "now"}')],
    ),
    "bare, the name escaped": (
        r'{"name": "n\u006fw"}',
        [Content(r'{"name": "n\u006fw"}')],
    ),
    "bare, inside other JSON": (
        f'{{"calls": [{BARE_NOW}]}}',
        [Content(f'{{"calls": [{BARE_NOW}]}}')],
    ),
    "bare, cut in the name": ('{"name": "no', [Content('{"name": "no')]),
    "bare, cut behind the name": ('{"name": "now"', [CallBegin("now")]),
    "a fence": (
        f"Here:\n```json\n{BARE}\n```\n",
        [Content("Here:"), *call("get_weather", BEIJING)],
    ),
    "a fence without a language": (f"```\n{BARE_NOW}\n```", call("now")),
    "a fence in one line": (f"``` {BARE_NOW} ```", call("now")),
    "fences": (f"```json\n{BARE_NOW}\n```\n```json\n{BARE_NOW}\n```", call("now") * 2),
    "fences, the first not opened": (f"{BARE_NOW}\n```\n```json\n{BARE_NOW}\n```", call("now") * 2),
    "a fence, not closed": (f"```json\n{BARE_NOW}", call("now")),
    "a fence, half closed": (f"```json\n{BARE_NOW}\n``", call("now")),
    "a fence, closed only": (f"{BARE_NOW}\n```", call("now")),
    "a fence, and text": (
        f"```json\n{BARE_NOW}\n```\nDone.",
        [*call("now"), Content("\nDone.")],
    ),
    "another fence behind": (
        f"{BARE_NOW}\n```py\n1\n```",
        [*call("now"), Content("\n```py\n1\n```")],
    ),
    "a fence of other JSON": (
        '```json\n{"name": "Ann"}\n```',
        [Content('```json\n{"name": "Ann"}\n```')],
    ),
    "a fence of a language that is none": (
        f"```é {BARE_NOW}",
        [Content(f"```é {BARE_NOW}")],
    ),
    "a list of calls": (f"[{BARE}, {BARE_NOW}]", [*call("get_weather", BEIJING), *call("now")]),
    "a list in a fence": (f"```json\n[\n  {BARE_NOW},\n  {BARE_NOW}\n]\n```", call("now") * 2),
    "a list, closed only": (f"{BARE_NOW}]\n```", call("now")),
    "a list of others": ("[1, 2]", [Content("[1, 2]")]),
    "other tags": (f"<tools>\n{BARE_NOW}\n</tools>", call("now")),
    "more tags": (
        f"<function_call>{BARE_NOW}</function_call>\n<tool>{BARE_NOW}</tool>",
        call("now") * 2,
    ),
    "tags of others": (f"<b>{BARE_NOW}</b>", [Content(f"<b>{BARE_NOW}</b>")]),
}
MARKERS = (
    *(f"\n{BARE_NOW}", f"\n```json\n{BARE}", "\n[", "\n<tools>", "</tools>", '\n{"name": "n'),
    *(f"{BARE_NOW}\n```", "{'name': 'now'", "]\n```", ",\n", "\n```\n```json\n"),
)


def test_json_that_is_no_call_is_streamed() -> None:
    parser = HermesParser(TOOLS)
    assert parser.feed('{"name": "') == []
    assert parser.feed("n") == []
    assert parser.feed("ew") == [Content('{"name": "new')]
    assert parser.feed('", "a": ') == [Content('", "a":')]
    assert parser.feed("1}") == [Content(" 1}")]
    assert parser.feed('\n{"a": 1') == [Content('\n{"a": 1')]


@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        '{"',
        '\n{"name": "n',
        "```",
        "\n```json\n[",
        "<tool",
        "\n<tools>",
        '{"name": ',
        " ",
        "\n{ ",
    ],
)
def test_the_work_grows_with_the_text_only(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in looks at the text, whole and character by character."""
    num_looks = 0
    original = HermesParser._peek, HermesParser._read

    def peek(self: HermesParser, *args: Any) -> Any:
        nonlocal num_looks
        num_looks += 1
        return original[0](self, *args)

    def read(self: HermesParser, *args: Any) -> Any:
        nonlocal num_looks
        num_looks += 1
        return original[1](self, *args)

    monkeypatch.setattr(HermesParser, "_peek", peek)
    monkeypatch.setattr(HermesParser, "_read", read)
    counts = []
    for length in (200, 2000):
        num_looks = 0
        text = (piece * length)[:length]
        run(HermesParser, [text])
        run(HermesParser, list(text))
        counts.append(num_looks)
    assert counts[1] <= 11 * counts[0] + 100
