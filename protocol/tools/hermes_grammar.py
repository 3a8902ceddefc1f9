"""The grammar of Hermes calls (hermes.py reads them), with markers and without."""

from collections.abc import Iterator

from protocol.tools.answer_grammar import (
    ANYTHING,
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    answer_grammar,
    literal,
    pattern,
)
from protocol.tools.hermes import CLOSING, FENCE, OPENING, OTHER_TAGS

_SPACE = r"[ \t\r\n]{0,20}"
_FENCE_BEGIN = rf"{pattern(FENCE)}[a-zA-Z0-9]{{0,20}}"


def hermes_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer; marked calls are spelled as the templates show them.

    A call that is required is marked. In free text an object that begins a line with the name of a
    tool is a call as well.
    """
    syntax = CallSyntax(begin=OPENING, separator="\n", unmarked=_unmarked)
    return answer_grammar(rules, syntax, _write_call)


def _write_call(lark: Lark, tool: CallableTool, number: int) -> str:
    head = lark.text(f'\n{{"name": "{tool.name}", "arguments": ')
    tail = lark.text(f"}}\n{CLOSING}")
    return f"{head} {lark.arguments(tool, number)} {tail}"


def _unmarked(lark: Lark, rules: AnswerRules) -> Iterator[tuple[str, str]]:
    """Up to the tool's name the text may still be anything else; behind it, it is a call."""
    tags = "|".join(map(pattern, OTHER_TAGS))
    opening = rf"({_FENCE_BEGIN}|<({tags})>)?"
    closing = rf"({pattern(FENCE)}|<\/({tags})>)"
    # between two calls a fence may close and another open
    between = (
        rf"{_SPACE}({pattern(FENCE)}{_SPACE})?(,{_SPACE})?({_FENCE_BEGIN}{_SPACE})?\{{{_SPACE}"
    )
    lark.rule("BETWEEN", f"/{between}/")
    lark.rule("CLOSING", rf"/({_SPACE}\])?{_SPACE}{closing}|{_SPACE}\]/")
    lark.rule("COLON", f"/{_SPACE}:{_SPACE}/")
    lark.rule("TO_ARGUMENTS", rf'/{_SPACE},{_SPACE}"arguments"{_SPACE}:{_SPACE}/')
    lark.rule("END", rf"/{_SPACE}\}}/")
    for i, tool in enumerate(rules.tools):
        arguments = lark.arguments(tool, i, is_compact=False)
        lark.rule(f"unmarked_{i}", f"TO_ARGUMENTS {arguments} END")
        lark.rule(f"another_{i}", f"{literal(f'{chr(34)}{tool.name}{chr(34)}')} unmarked_{i}")
    others = " | ".join(f"another_{i}" for i in range(len(rules.tools)))
    more = rules.more(f"BETWEEN {literal(chr(34) + 'name' + chr(34))} COLON ({others})")
    behind = f"{more} CLOSING?"
    begin = rf"({ANYTHING}\n)?[ \t\r\n]*{opening}[ \t\r\n]*\[?[ \t\r\n]*\{{[ \t\r\n]*"
    for i, tool in enumerate(rules.tools):
        name = rf'"name"[ \t\r\n]*:[ \t\r\n]*"{pattern(tool.name)}"'
        yield f"{begin}{name}", f"unmarked_{i} {behind}"
