"""The grammar of Hermes calls (hermes.py reads them), with markers and without."""

from collections.abc import Iterator
from functools import partial

from protocol.tools.answer_grammar import (
    AnswerRules,
    CallableTool,
    CallSyntax,
    Lark,
    answer_grammar,
    literal,
    pattern,
)
from protocol.tools.hermes import CLOSING, FENCE, OPENING, OTHER_TAGS

_ANY_SPACE = r"[ \t\r\n]*"  # where the text may still be anything else
_SPACE = r"[ \t\r\n]{0,20}"
_FENCE_BEGIN = rf"{pattern(FENCE)}[a-zA-Z0-9]*"


def hermes_grammar(rules: AnswerRules) -> str:
    """The Lark of an answer; marked calls are spelled as the templates show them.

    A call that is required is marked. In free text an object that begins a line with the name of a
    tool is a call as well.
    """
    syntax = CallSyntax(begin=OPENING, separator="\n", unmarked=_unmarked)
    # one rule for the arguments of both, or 128 tools are too much to compile
    is_compact = rules.is_required or rules.content_schema is not None
    return answer_grammar(rules, syntax, partial(_write_call, is_compact=is_compact))


def _write_call(lark: Lark, tool: CallableTool, number: int, *, is_compact: bool) -> str:
    head = lark.text(f'\n{{"name": "{tool.name}", "arguments": ')
    arguments = lark.arguments(tool, number, is_compact=is_compact)
    return f"{head} {arguments} {lark.text(f'}}{chr(10)}{CLOSING}')}"


def _unmarked(lark: Lark, rules: AnswerRules, text: str) -> Iterator[tuple[str, str]]:
    """Up to the end of a tool's name the text may still be anything else; then it is a call."""
    tags = "|".join(map(pattern, OTHER_TAGS))
    opening = rf"(({_FENCE_BEGIN}{_ANY_SPACE})*|<({tags})>)"
    closing = rf"({pattern(FENCE)}|<\/({tags})>)"
    # A comma, or a fence that closes and another that opens. A line break alone is not enough: weak
    # models go on with made-up results, and would be driven from there to call after call.
    fences = rf"{pattern(FENCE)}{_SPACE}{_FENCE_BEGIN}{_SPACE}"
    between = rf"{_SPACE}(,{_SPACE}|{fences})\{{{_SPACE}"
    lark.rule("BETWEEN", f'/{between}"name"{_SPACE}:{_SPACE}/')
    lark.rule("CLOSING", rf"/({_SPACE}\])?{_SPACE}{closing}|{_SPACE}\]/")
    lark.rule("TO_ARGUMENTS", rf'/{_SPACE},{_SPACE}"arguments"{_SPACE}:{_SPACE}/')
    lark.rule("END", rf"/{_SPACE}\}}/")
    for i, tool in enumerate(rules.tools):
        lark.rule(f"unmarked_{i}", f"TO_ARGUMENTS {lark.arguments(tool, i, is_compact=False)} END")
    lark.rule("another", " | ".join(_named(rules, '"', '"')))
    lark.rule("others", f"{rules.more('BETWEEN another')} CLOSING?")
    bracket = rf"{_ANY_SPACE}\[?{_ANY_SPACE}\{{{_ANY_SPACE}"
    for kind, quote in ("double", '"'), ("single", "'"):
        ways = [
            # lazy: no text goes on behind it
            lark.rule(
                f"{kind}_{i}[lazy]", lark.rule(f"{kind}_{i}".upper(), literal(tool.name + quote))
            )
            for i, tool in enumerate(rules.tools)
        ]
        calls = [f"{name} unmarked_{i} others" for i, name in enumerate(ways)]
        lark.rule(kind, " | ".join([*calls, text]))
        key = rf"(\"name\"|'name'){_ANY_SPACE}:{_ANY_SPACE}{pattern(quote)}"
        yield f"{_ANY_SPACE}{opening}{bracket}{key}", kind


def _named(rules: AnswerRules, before: str, after: str) -> Iterator[str]:
    for i, tool in enumerate(rules.tools):
        yield f"{literal(before + tool.name + after)} unmarked_{i}"
