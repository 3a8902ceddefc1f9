"""What an answer is worth in the tool-use evaluation (loadtest/tool_use.py): pure, without I/O.

Owns the form of a case and of an answer, and how the two are compared. `jsonschema` comes with the
dev dependencies only, so this needs an installation with `.[dev]`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations, permutations
from typing import Any, Literal

import msgspec
from jsonschema import Draft202012Validator

Category = Literal["single", "parallel", "none", "missing", "chinese", "context"]
JsonObject = dict[str, Any]
Schemas = Mapping[str, JsonObject]  # the parameters of each tool by its name

_ANY_OF = "any_of"


@dataclass(frozen=True, slots=True)
class ExpectedCall:
    """A call that the answer has to make.

    In its arguments {"any_of": [...]} lists what is right in its place; null stands for an argument
    left out.
    """

    name: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True)
class Expectation:
    calls: list[ExpectedCall]  # in any order; empty: the answer has to be text


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation, the names of the tools it is asked with, and the right answer."""

    id: str
    category: Category
    tools: list[str]
    messages: list[JsonObject]
    expect: Expectation


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the model made it."""

    name: str
    arguments: str  # JSON, unless the model failed


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one case; with an error nothing else did."""

    content: str | None = None
    calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of one case or of many; every share is one of them by another."""

    num_cases: int = 0
    num_selected: int = 0  # cases with the right names called; an error is none of them
    num_compared: int = 0  # expected calls whose name was called
    num_matched: int = 0  # of those, with the right arguments
    num_no_call_cases: int = 0  # answered ones that want text
    num_false_calls: int = 0  # of those, with something called
    num_calls: int = 0  # all that were made
    num_valid_calls: int = 0  # of those, of an offered tool and as its schema has it
    num_errors: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(*map(int.__add__, astuple(self), astuple(other)))


def score(case: Case, schemas: Schemas, answer: Answer) -> Score:
    """The counts of one answer. `schemas` holds at least the tools of the case."""
    expected, made = case.expect.calls, answer.calls
    is_answered = answer.error is None
    names, made_names = Counter(call.name for call in expected), Counter(call.name for call in made)
    return Score(
        num_cases=1,
        num_selected=int(is_answered and names == made_names),
        num_compared=(names & made_names).total(),
        num_matched=sum(
            _num_matched(
                [call.arguments for call in expected if call.name == name],
                [parsed(call.arguments) for call in made if call.name == name],
                schemas[name],
            )
            for name in names
        ),
        num_no_call_cases=int(is_answered and not expected),
        num_false_calls=int(not expected and bool(made)),
        num_calls=len(made),
        num_valid_calls=sum(_is_valid(call, case.tools, schemas) for call in made),
        num_errors=int(not is_answered),
    )


def parsed(arguments: str) -> JsonObject | None:
    """The object that the text is in JSON; None when it is none."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):  # the latter of endless brackets
        return None
    return value if isinstance(value, dict) else None


def _is_valid(call: Call, tools: Sequence[str], schemas: Schemas) -> bool:
    arguments = parsed(call.arguments)
    if arguments is None or call.name not in tools:
        return False
    return Draft202012Validator(schemas[call.name]).is_valid(arguments)


def _num_matched(
    expected: list[JsonObject], made: list[JsonObject | None], schema: JsonObject
) -> int:
    """Of the calls of one tool, at most how many pair up: their order is free."""
    size = min(len(expected), len(made))
    return max(
        sum(
            there is not None and _same_arguments(want, there, schema)
            for want, there in zip(wanted, some, strict=True)
        )
        for wanted in permutations(expected, size)
        for some in combinations(made, size)
    )


def _same_arguments(expected: JsonObject, made: JsonObject, schema: JsonObject) -> bool:
    """Leaving an argument out is the same as giving its default."""
    properties: JsonObject = schema["properties"]
    defaults = {name: about.get("default") for name, about in properties.items()}
    return all(
        _same(expected.get(name, defaults.get(name)), made.get(name, defaults.get(name)))
        for name in expected.keys() | made.keys()
    )


def _same(expected: Any, made: Any) -> bool:
    """Numbers by value, strings without regard to case and blanks, lists in their order."""
    if isinstance(expected, dict):
        if expected.keys() == {_ANY_OF}:
            return any(_same(one, made) for one in expected[_ANY_OF])
        return (
            isinstance(made, dict)
            and expected.keys() == made.keys()
            and all(_same(expected[name], made[name]) for name in expected)
        )
    if isinstance(expected, list):
        return (
            isinstance(made, list)
            and len(expected) == len(made)
            and all(map(_same, expected, made))
        )
    if isinstance(expected, str):
        return isinstance(made, str) and _folded(expected) == _folded(made)
    # bool is an int in Python: 1 is not true
    return isinstance(expected, bool) == isinstance(made, bool) and bool(expected == made)


def _folded(text: str) -> str:
    return "".join(text.split()).casefold()


def rows(label: str, scored: Sequence[tuple[str, Score]]) -> Iterator[str]:
    """A Markdown table: all cases, then those of each category, which come first in the pairs."""
    yield "| model | cases | selection | arguments | false calls | valid arguments | errors |"
    yield "|---|---|---|---|---|---|---|"
    groups = {"all": Score()}
    for category, one in scored:
        groups["all"] += one
        groups[category] = groups.get(category, Score()) + one
    for name, group in groups.items():
        shares = (
            _share(group.num_selected, group.num_cases),
            _share(group.num_matched, group.num_compared),
            _share(group.num_false_calls, group.num_no_call_cases),
            _share(group.num_valid_calls, group.num_calls),
        )
        yield f"| {label} | {name} | {' | '.join(shares)} | {group.num_errors} |"


def _share(part: int, whole: int) -> str:
    """Empty where there was nothing to count."""
    return f"{part / whole:.0%} ({part}/{whole})" if whole else ""
