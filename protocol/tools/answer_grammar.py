"""Grammars of answers in which tools may be called: what all formats share.

Written in llguidance's Lark (docs/decisions/0009, 0010). A format (hermes.py, react.py, ...) says
how it writes a call; here is what stands around calls: free text up to where one begins, one call
or several, and the end. Where a call has begun nothing but a call of a tool that may be called can
follow, and nothing but calls follow a call.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from protocol.tools.calls import Tool

# As the templates' tojson writes it. Without a rule weak models fill calls with white space.
_COMPACT: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
# Between two tokens of JSON in an answer: blanks, or one line break and its indentation.
_INDENTED: Mapping[str, Any] = {"whitespace_pattern": r"[ \t]{0,2}|\r?\n[ \t]{0,40}"}

_WITHOUT_SPACE = ("string", "integer", "number", "boolean", "null")

ANYTHING = "(?s:.*)"
MAX_CALLS = 16  # in an answer
_MAX_BYTES = 256 * 1024  # what the engine takes; references are copied, so it is soon reached


class NoGrammar(Exception):
    """Tools that no grammar can be written for; the message is fit for the client."""


class UnsupportedSchema(NoGrammar):
    """A tool's arguments that a format has no grammar for."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Invalid schema for function '{name}': {reason}")


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that may be called. `schema`: of its arguments, as grammar_schema() gives it."""

    tool: Tool
    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.tool.name


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What an answer may be, whatever the format.

    Attributes:
        tools: at least one.
        is_required: nothing but calls.
        allows_parallel: more than one call.
        content_schema: of an answer that calls nothing (json_answers.py reads it); None: any text.
        thinking_opening: text with which thinking may begin before the answer, which the grammar
            around this one reads; None where it cannot.
        special_tokens: ids of the texts that are control tokens of the model.
        continues_line: the prompt ends inside a line that the answer goes on with.
    """

    tools: tuple[CallableTool, ...]
    is_required: bool = False
    allows_parallel: bool = True
    content_schema: Mapping[str, Any] | None = None
    thinking_opening: str | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    continues_line: bool = False

    def more(self, call: str) -> str:
        """The Lark of further calls. There is an end to them: weak models find none."""
        return f"({call}){{0,{MAX_CALLS - 1}}}" if self.allows_parallel else ""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """What stands around calls in a format.

    Attributes:
        begin: text with which every call begins; "" where a call is known by its place only.
            Free text cannot have it, be it a control token or spelled out.
        separator: text between two calls; None where an answer has one at most.
        endings: texts, one of which may follow the last call; generation stops at them.
        lead: Lark of what may come before the first call where there is no free text.
        found: regular expressions at the end of which, in free text, a call has begun; by default
            the one of `begin`.
        answered: the same, at the end of which no call can begin any more.
        excluded: a regular expression that free text does not match.
        joint: a control token that may part free text from a call.
        unmarked: how a line may begin that is a call without `begin`.
    """

    begin: str
    separator: str | None
    endings: Sequence[str] = ()
    lead: str = ""
    found: Sequence[str] = ()
    answered: Sequence[str] = ()
    excluded: str = ""
    joint: str = ""
    unmarked: "FindUnmarked | None" = None


class FindUnmarked(Protocol):
    """Gives regular expressions of the beginning of a line, each with the Lark of what follows: a
    call, or the rule `text`, which is free text from inside of a line. May add rules to `lark`.
    """

    def __call__(
        self, lark: "Lark", rules: AnswerRules, text: str
    ) -> Iterable[tuple[str, str]]: ...


class WriteCall(Protocol):
    """Gives the Lark of a call of `tool` behind its beginning; may add rules to `lark`."""

    def __call__(self, lark: "Lark", tool: CallableTool, number: int) -> str: ...


class Lark:
    """A grammar in the making."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._lines: list[str] = []
        self._num_bytes = 0
        self._shared: set[str] = set()
        self._special_tokens = special_tokens
        alternatives = sorted(map(re.escape, special_tokens), key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(alternatives)})" if alternatives else "(?!)")

    def rule(self, name: str, body: str) -> str:
        """Add a rule (small letters) or a terminal; returns its name. Raises NoGrammar."""
        self._num_bytes += len(body.encode())
        if self._num_bytes > _MAX_BYTES:
            raise NoGrammar(f"it is longer than {_MAX_BYTES} bytes.")
        self._lines.append(f"{name}: {body}")
        return name.partition("[")[0]

    def shared(self, name: str, body: str) -> str:
        """Add a rule or a terminal if it is not there; returns its name."""
        if name not in self._shared:
            self._shared.add(name)
            self.rule(name, body)
        return name

    def json(
        self,
        name: str,
        schema: object,
        tool: CallableTool | None,
        place: Sequence[str] = (),
        *,
        is_compact: bool = True,
    ) -> str:
        """Add a rule for JSON by a schema that is at `place` in that of `tool`, or is that of the
        content.
        """
        options = _COMPACT if is_compact else _INDENTED
        if tool is not None and not tool.tool.strict:
            options = {**options, "coerce_one_of": True}
        whole = schema
        if isinstance(schema, Mapping):  # whose own "x-guidance" is no say of the client's
            is_plain = schema.get("type") in _WITHOUT_SPACE and "oneOf" not in schema
            whole = {**schema, "x-guidance": {} if is_plain else options}
        # where an error of the schema is: engine/grammar_process.py looks for it
        owner = "response_format" if tool is None else f"function '{tool.name}'"
        self._lines.append(f"// {owner} {json.dumps(place)}")
        return self.rule(name, f"%json {json.dumps(whole, separators=(',', ':'))}")

    def arguments(self, tool: CallableTool, number: int, *, is_compact: bool = True) -> str:
        """Add the rule for a tool's arguments as a JSON object, if it is not there."""
        name = f"arguments_{number}" if is_compact else f"indented_{number}"
        if name not in self._shared:
            self._shared.add(name)
            self.json(name, tool.schema, tool, is_compact=is_compact)
        return name

    def text(self, text: str) -> str:
        """The Lark of a text, in which control tokens are themselves."""
        parts = [part for part in self._special.split(text) if part]
        return " ".join(
            f"<[{self._special_tokens[part]}]>" if part in self._special_tokens else literal(part)
            for part in parts
        )

    def build(self) -> str:
        return "\n".join(self._lines) + "\n"


def literal(text: str) -> str:
    """A text as Lark has it."""
    return json.dumps(text, ensure_ascii=False)


def pattern(text: str) -> str:
    """A text as a part of a regular expression between slashes."""
    special = r"\.+*?()|[]{}^$#&-~/"
    quoted = "".join(f"\\{char}" if char in special else char for char in text)
    return quoted.replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")


def answer_grammar(rules: AnswerRules, syntax: CallSyntax, write_call: WriteCall) -> str:
    """The Lark of an answer."""
    lark = Lark(rules.special_tokens)
    begin = lark.text(syntax.begin)
    more = ""
    if syntax.separator is not None:
        more = rules.more(f"{lark.text(syntax.separator + syntax.begin)} call")
    end = f"({' | '.join(map(lark.text, syntax.endings))})?" if syntax.endings else ""
    behind = f"call {more} {end}"
    if rules.is_required:
        lark.rule("start", f"{syntax.lead} {begin} {behind}")
    elif rules.content_schema is not None:
        content = lark.json("content", rules.content_schema, None, is_compact=False)
        lark.rule("start", f"{content} | {syntax.lead} {begin} {behind}")
    else:
        lark.rule("start", " | ".join(_with_free_text(lark, rules, syntax, behind)))
    ways = [f"call_{i}" for i in range(len(rules.tools))]
    lark.rule("call", " | ".join(ways))
    for i, tool in enumerate(rules.tools):
        lark.rule(ways[i], write_call(lark, tool, i))
    return lark.build()


def _with_free_text(
    lark: Lark, rules: AnswerRules, syntax: CallSyntax, behind: str
) -> Iterator[str]:
    """What an answer may be: text, text and calls, or calls alone, which go on with `behind`."""
    opening = rules.thinking_opening
    no_thinking = "" if opening is None else rf" & ~/\s*{pattern(opening)}{ANYTHING}/"
    lark.rule("ANY", f"/{ANYTHING}/")
    not_excluded = f" & ~/{syntax.excluded}/" if syntax.excluded else ""
    yield lark.rule("TEXT", f"/{ANYTHING}/{no_thinking}{not_excluded}")
    found = syntax.found
    if not found and syntax.begin:
        found = [ANYTHING + pattern(syntax.begin)]
    if not found:
        yield behind
    parting = syntax.joint or syntax.begin
    parted = ""
    if parting.startswith(tuple(rules.special_tokens)):
        parted = f"{lark.text(parting)} {behind}"
        yield f"TEXT {parted}"
    ends = [(expression, behind) for expression in found]
    ends += [(expression, "ANY") for expression in syntax.answered]
    unmarked = [] if syntax.unmarked is None else list(syntax.unmarked(lark, rules, "text"))
    if unmarked:
        inside = ends + [(rf"{ANYTHING}\n{line}", following) for line, following in unmarked]
        rest = ["ANY", *([f"ANY {parted}"] if parted else []), *_found(lark, "inside", inside, "")]
        lark.rule("text", " | ".join(rest))
    ends += [(rf"({ANYTHING}\n)?{line}", following) for line, following in unmarked]
    yield from _found(lark, "found", ends, no_thinking)


def _found(lark: Lark, name: str, ends: Iterable[tuple[str, str]], but: str) -> Iterator[str]:
    """Text up to each of some ends, with what follows."""
    for i, (expression, following) in enumerate(ends):
        lark.rule(f"{name.upper()}_{i}", f"/{expression}/{but}")
        # lazy: it ends as soon as it matches, and then no other reading is left
        yield f"{lark.rule(f'{name}_{i}[lazy]', f'{name.upper()}_{i}')} {following}"
