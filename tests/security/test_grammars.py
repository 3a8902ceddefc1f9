"""Regular expressions and schemas made to take for ever: compiled or refused, and the next served.

Through the compiler with its process, as the engine has it; that its limits hold for what takes
minutes and gigabytes is in tests/engine/test_grammar_compiler.py.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.grammar import GrammarError, GrammarState
from engine.grammar_compiler import GrammarCompiler
from engine.messages import Grammar
from tests.engine.grammars import EOS, TOKEN_BYTES, VOCAB_SIZE, ids_of
from tests.fuzz.budget import budget, damaged

LONG = 10**9


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(lambda: TOKEN_BYTES, VOCAB_SIZE, [EOS])
    compiler.start()
    yield compiler
    compiler.close()


def accepts(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool | None:
    """Whether the text is all that the grammar wants; None where it is refused."""
    try:
        state = GrammarState(compiler.compile(grammar).result(60))
    except GrammarError as error:
        assert str(error)
        return None
    state.update(ids_of(text))
    return state.is_complete


# with a text that takes readers that backtrack for ever
BACKTRACKING = ("(a+)+b", "(a|a)*b", "(a|aa)+b", "(a*)*b", "(.*){50}b", "([a-z]+)*b", "(a?){90}b")


@pytest.mark.parametrize("pattern", BACKTRACKING)
def test_patterns_that_backtrack_elsewhere(compiler: GrammarCompiler, pattern: str) -> None:
    grammar = Grammar(kind="regex", text=pattern)
    assert accepts(compiler, grammar, "a" * 60) is False


REFUSED_PATTERNS = ("(?=a)b", "(?<!a)b", "(a)\\1", "(?P<n>a)(?P=n)", "(", "[", "a{2,1}")


@pytest.mark.parametrize("pattern", REFUSED_PATTERNS)
def test_patterns_that_no_automaton_has(compiler: GrammarCompiler, pattern: str) -> None:
    assert accepts(compiler, Grammar(kind="regex", text=pattern), "") is None


@pytest.mark.parametrize(
    "pattern", ["((a{1,1000}){1,1000}){1,1000}", "a{1000000}", "(" * 5000 + ")" * 5000, "." * 50000]
)
def test_patterns_that_are_too_large(compiler: GrammarCompiler, pattern: str) -> None:
    accepts(compiler, Grammar(kind="regex", text=pattern), "")
    assert accepts(compiler, Grammar(kind="regex", text="ab?"), "ab") is True


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


SCHEMAS: dict[str, dict[str, Any]] = {
    "itself": {"$ref": "#"},
    "a circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "a URL": {"$ref": "http://127.0.0.1:9/x.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": LONG},
    "a range of items": {"type": "array", "items": {}, "minItems": 1, "maxItems": LONG},
    "a long string": {"type": "string", "minLength": LONG},
    "a large number": {"type": "integer", "minimum": 10**400},
    "a fine number": {"type": "number", "multipleOf": 1e-300},
    "a pattern": {"type": "string", "pattern": "^(a+)+$"},
    "deep": nested(300),
    "wide": {"properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
    "many ways": {"anyOf": [nested(i % 7) for i in range(2000)]},
    "many values": {"enum": [str(i) * 5 for i in range(9000)]},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_schemas(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    accepts(compiler, Grammar(kind="json_schema", text=json.dumps(schema)), "")
    assert accepts(compiler, Grammar(kind="json_schema", text='{"const": 1}'), "1") is True


SEEDS: tuple[Grammar, ...] = (
    Grammar(kind="regex", text=r"(ab|c{2,5})+[^x-z]?\d*(é|\p{L})"),
    Grammar(kind="lark", text='start: a | B\na: "x" a?\nB: /[0-9]+/'),
    Grammar(
        kind="json_schema",
        text=json.dumps(
            {
                "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 3}},
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"enum": [1, "é", None]}},
                "required": ["x"],
                "additionalProperties": {"type": "string", "pattern": "^a+$"},
            }
        ),
    ),
    Grammar(kind="choice", text='["a", "é", "ab"]'),
)


@budget(15)
@given(seed=st.integers(0, 2**32))
def test_damaged_grammars(compiler: GrammarCompiler, seed: int) -> None:
    grammar = random.Random(seed).choice(SEEDS)
    text = damaged(grammar.text.encode(), seed).decode(errors="replace")
    accepts(compiler, Grammar(kind=grammar.kind, text=text), "a")
