"""engine/grammar_compiler.py and its processes: limits, recovery, cache."""

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine import grammar_compiler
from engine.errors import CheckpointError
from engine.grammar import GrammarError, GrammarState
from engine.grammar_compiler import Abandoned, GrammarCompiler
from engine.messages import Grammar
from engine.token_bytes import TokenBytes
from tests.engine.grammars import EOS, TOKEN_BYTES, VOCAB_SIZE, ids_of


def doubling(depth: int) -> dict[str, Any]:
    """2 KB that take gigabytes and a minute: every level is copied twice."""
    link = [{"minProperties": 0}, {"type": "object"}]
    defs: dict[str, Any] = {
        f"a{i}": {
            "type": "object",
            "properties": {
                side: {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}, link[k]]}
                for k, side in enumerate("lr")
            },
        }
        for i in range(depth)
    }
    return {"$defs": {**defs, f"a{depth}": {"type": "object"}}, "$ref": "#/$defs/a0"}


def chain(length: int) -> dict[str, Any]:
    """Each definition within the one before: a stack overflow."""
    defs: dict[str, Any] = {
        f"a{i}": {
            "allOf": [{"$ref": f"#/$defs/a{i + 1}"}],
            "properties": {f"p{i}": {"type": "string"}},
        }
        for i in range(length)
    }
    return {"$defs": {**defs, f"a{length}": {"type": "object"}}, "$ref": "#/$defs/a0"}


def of_schema(schema: object) -> Grammar:
    return Grammar(kind="json_schema", text=json.dumps(schema))


SLOW = Grammar(
    kind="lark",
    text="start: A\nA: " + " & ".join(f"/(.|\\n)*a.{{{i}}}b(.|\\n)*/" for i in range(60)),
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(lambda: TOKEN_BYTES, VOCAB_SIZE, [EOS])
    compiler.start()
    yield compiler
    compiler.close()


def problem_of(compiler: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(GrammarError) as caught:
        compiler.compile(grammar).result(30)
    return str(caught.value)


def test_it_compiles_and_remembers(compiler: GrammarCompiler) -> None:
    grammar = Grammar(kind="choice", text='["yes"]', origin="structured_outputs.choice")
    future = compiler.compile(grammar)
    state = GrammarState(future.result(30))
    state.update(ids_of("yes"))
    assert state.is_complete
    assert compiler.compile(Grammar(kind="choice", text='["yes"]')) is future


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (doubling(22), "takes more than 2 seconds|too much memory"),
        (chain(2000), "nested too deeply"),
        (SLOW, "takes more than 2 seconds"),
        (of_schema({"properties": {"a": {"not": {}}}}), "'a'"),
    ],
)
def test_pathological_grammars_are_refused_in_time(
    compiler: GrammarCompiler, schema: Grammar | dict[str, Any], problem: str
) -> None:
    grammar = schema if isinstance(schema, Grammar) else of_schema(schema)
    started = time.monotonic()
    assert re.search(problem, problem_of(compiler, grammar))
    assert time.monotonic() - started < 10
    compiler.compile(of_schema({"const": 1})).result(30)  # and the next one is served


def test_one_at_its_limits_does_not_hold_up_the_next() -> None:
    compiler = GrammarCompiler(lambda: TOKEN_BYTES, VOCAB_SIZE, [EOS])
    try:
        compiler.compile(of_schema({"const": 0})).result(30)
        slow = compiler.compile(SLOW)
        for i in range(5):
            compiler.compile(of_schema({"const": i})).result(30)
        assert not slow.done()
        ticks = 0  # nor does anything of it hold the interpreter's lock
        while not slow.done():
            time.sleep(0.005)
            ticks += 1
        assert ticks > 20
    finally:
        compiler.close()


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (
            {"type": "object", "properties": {"a": {"items": {"anyOf": [{}, {"not": {}}]}}}},
            "In context=('properties', 'a', 'items', 'anyOf', '1'), Unimplemented keys",
        ),
        (
            {"$defs": {"x": {"properties": {"q": {"type": "foo"}}}}, "$ref": "#/$defs/x"},
            "In context=('$defs', 'x', 'properties', 'q'), Invalid type: foo.",
        ),
        ({"type": "strin", "default": {"not": 1}}, "In context=(), Invalid type: strin."),
        ({"$ref": "#/$defs/gone"}, "In context=(), Pointer '/$defs/gone' does not exist."),
        ([1], "it is not an object."),
    ],
)
def test_an_error_names_its_place(compiler: GrammarCompiler, schema: object, place: str) -> None:
    assert problem_of(compiler, of_schema(schema)).startswith(place)


def test_only_so_many_are_remembered(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "_MAX_CACHED", 2)
    first = compiler.compile(of_schema({"const": "first"}))
    compiler.compile(of_schema({"const": "second"}))
    assert compiler.compile(of_schema({"const": "first"})) is first
    compiler.compile(of_schema({"const": "third"}))
    assert compiler.compile(of_schema({"const": "first"})) is first
    assert len(compiler._cache) == 2


def test_a_vocabulary_that_is_not_known_refuses_grammars() -> None:
    def fail() -> TokenBytes:
        raise CheckpointError("no decoder")

    compiler = GrammarCompiler(fail, VOCAB_SIZE, [EOS])
    compiler.start()
    assert "does not take one: no decoder" in problem_of(compiler, of_schema({}))
    compiler.close()


def test_closing_ends_what_is_being_compiled_and_leaves_no_process() -> None:
    threads = set(threading.enumerate())
    compiler = GrammarCompiler(lambda: TOKEN_BYTES, VOCAB_SIZE, [EOS])
    future = compiler.compile(SLOW)
    while not compiler._children:
        time.sleep(0.01)
    time.sleep(0.3)
    children = list(compiler._children.values())
    compiler.close()
    assert not any(child.is_alive for child in children)
    assert isinstance(future.exception(5), GrammarError | Abandoned)
    assert set(threading.enumerate()) <= threads
