"""engine/grammar_closing.py: an answer is complete when its tokens have run out."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.grammar import GrammarState
from engine.grammar_closing import Closing, Spelling
from engine.messages import Grammar, Thinking
from engine.token_bytes import TokenBytes
from tests.engine.grammars import EOS, SPELLING, VOCAB_SIZE, allowed, compiled, ids_of, text_of
from tests.engine.random_runner import random_engine, request_of
from tests.engine.test_core_grammars import run

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 2},
        "number": {"type": "number"},
        "list": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string", "pattern": "^[A-Z]{3}$"}},
                "required": ["id"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["text", "list"],
}
JSON = Grammar(kind="json_schema", text=json.dumps(SCHEMA))
SHORTEST = len('{"text":"aa","list":[]}')


def walk(grammar: Grammar, num_tokens: int, seed: int) -> tuple[list[int], GrammarState]:
    """Tokens at random, each as likely as another, as an engine would take them."""
    generator = random.Random(seed)
    state = GrammarState(compiled(grammar))
    output: list[int] = []
    while len(output) < num_tokens and not state.is_complete:
        token_id = generator.choice(sorted(allowed(state)))
        output.append(state.vet(token_id, num_tokens - len(output)))
        state.update(output)
        if output[-1] == EOS:
            return output[:-1], state
    return output, state


@settings(deadline=None, max_examples=60)
@given(st.integers(SHORTEST + 1, 300), st.integers(0, 2**32))
def test_json_is_whole_when_the_tokens_have_run_out(num_tokens: int, seed: int) -> None:
    output, _ = walk(JSON, num_tokens, seed)
    jsonschema.validate(json.loads(text_of(output)), SCHEMA)


def test_what_would_have_ended_in_time_is_left_alone() -> None:
    text = '{"text": "abc", "list": [{"id": "ABC"}]}'
    state = GrammarState(compiled(JSON))
    output: list[int] = []
    for token_id in ids_of(text):
        # with no token to spare
        output.append(state.vet(token_id, len(text) - len(output)))
        state.update(output)
    assert text_of(output) == text
    assert not state.is_closed_early


def test_an_answer_without_room_is_left_alone() -> None:
    output, state = walk(JSON, 8, seed=1)
    assert len(output) == 8 and not state.is_closed_early


def test_a_string_that_has_no_end_is_given_one() -> None:
    state = GrammarState(compiled(JSON))
    output = ids_of('{"text": "')
    state.update(output)
    while not state.is_complete:
        output.append(state.vet(ord("a"), 60 - len(output)))
        state.update(output)
    answer = json.loads(text_of(output))
    assert answer["list"] == [] and set(answer["text"]) == {"a"}
    assert 55 < len(output) <= 60 and state.is_closed_early


def test_what_cannot_be_completed_any_more_is_not_begun() -> None:
    """Behind a whole answer, as text before a call is one, the end is taken."""
    grammar = Grammar(kind="lark", text='start: /[a-z ]*/ ("!" /[0-9]{20}/)?')
    for num_left, taken in ((21, ord("!")), (20, EOS)):
        state = GrammarState(compiled(grammar))
        state.update(ids_of("hello "))
        assert state.vet(ord("!"), num_left) == taken
        assert state.is_closed_early == (taken == EOS)


def test_texts_that_end_something_are_tried_first() -> None:
    text = 'start: "<a>" body\nbody[suffix="</a>"]: /(?s:.*)/'
    for ends, expected in (((), None), (("</a>",), "<a></a>")):
        grammar = compiled(Grammar(kind="lark", text=text, ends=ends))
        way = Closing(SPELLING, grammar.ends)._find(grammar.matcher, 100)
        assert (None if way is None else text_of(way)) == expected


def test_thinking_is_ended_in_time() -> None:
    thinking = Thinking("<t>", "</t>", is_open=True)
    grammar = Grammar(kind="choice", text='["yes", "no"]', thinking=thinking)
    output, state = walk(grammar, 40, seed=3)
    assert text_of(output).endswith(("</t>yes", "</t>no")) and state.is_closed_early


def test_a_vocabulary_that_lacks_bytes() -> None:
    spelling = Spelling(TokenBytes([b"a", b"ab", b"b"], []), 3)
    assert spelling(b"abba") == [1, 2, 0]
    assert spelling(b"abc") is None
    assert spelling.bytewise(b"ab") == [0, 2]
    assert spelling.bytewise(b"c") is None
    grammar = compiled(JSON)
    closing = Closing(Spelling(TokenBytes([b"a"], []), VOCAB_SIZE), ())
    assert closing.vet(grammar.matcher, ord("{"), 5) == ord("{")


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_an_engine_says_length(temperature: float) -> None:
    engine = random_engine()
    open_ended = Grammar(kind="json_schema", text='{"type": "array", "items": {"type": "string"}}')
    limits = {str(i): 12 + i for i in range(6)}
    for name, limit in limits.items():
        engine.add(
            request_of(name, open_ended, seed=limit, temperature=temperature, max_tokens=limit)
        )
    outputs, finished = run(engine)
    for name, limit in limits.items():
        assert finished[name].num_output_tokens <= limit
        assert isinstance(json.loads(text_of(outputs[name])), list)
    assert "length" in {event.reason for event in finished.values()}
