"""engine/grammar.py: what each kind of grammar lets through, and the state of a sequence."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import grammar as module
from engine.grammar import GrammarError, GrammarState, compile_grammar
from engine.messages import Grammar, Thinking
from tests.engine.grammars import (
    CONTROL,
    EOS,
    TOKENIZER,
    VOCAB_SIZE,
    allowed,
    compiled,
    follows,
    ids_of,
    state_of,
    text_of,
)

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def of_schema(schema: object) -> Grammar:
    return Grammar(kind="json_schema", text=json.dumps(schema))


@pytest.mark.parametrize(
    ("grammar", "text", "expected"),
    [
        (of_schema(PERSON), '{"name": "A\\"b", "age": 3}', True),
        (of_schema(PERSON), '{\n  "name": "é",\n  "age": 3\n}', True),
        (of_schema(PERSON), '{"name": "A"}', False),
        (of_schema(PERSON), '{"name": "A", "age": -1}', False),
        (of_schema(PERSON), '{"name": "A", "age": 3, "x": 1}', False),
        (of_schema(PERSON), '{"name":\n\n\n"A", "age": 3}', False),  # or it could go on for ever
        (of_schema(True), "[1, null]", True),
        (of_schema({"x-guidance": {"lenient": True}, "type": "integer"}), "1", True),
        (Grammar(kind="json_object"), '{"a": [1, {"b": null}]}', True),
        (Grammar(kind="json_object"), "[]", False),
        (Grammar(kind="regex", text=r"\d{3}-\d{4}"), "555-1234", True),
        (Grammar(kind="regex", text=r"^a/b\n?$"), "a/b", True),
        (Grammar(kind="regex", text=r"\d{3}-\d{4}"), "555-123", False),
        (Grammar(kind="choice", text='["a", "ab", "é\\"\\n"]'), "a", True),
        (Grammar(kind="choice", text='["a", "ab", "é\\"\\n"]'), 'é"\n', True),
        (Grammar(kind="choice", text='["a", "ab"]'), "b", False),
        (Grammar(kind="lark", text='start: "a" foo\nfoo: "b"+ // more'), "abbb", True),
        (Grammar(kind="lark", text="start: %json {}"), "{}", True),
        (Grammar(kind="lark", text='start: "a"'), "", False),
    ],
)
def test_texts(grammar: Grammar, text: str, expected: bool) -> None:
    assert follows(grammar, text) == expected


def test_the_end_is_allowed_exactly_where_the_output_is_complete() -> None:
    grammar = Grammar(kind="choice", text='["a", "aba"]')
    assert EOS not in allowed(state_of(grammar))
    half = state_of(grammar, ids_of("a"))
    assert EOS in allowed(half) and not half.is_complete
    assert EOS not in allowed(state_of(grammar, ids_of("ab")))
    assert state_of(grammar, ids_of("aba")).is_complete


def test_control_tokens_are_no_text() -> None:
    ids = allowed(state_of(Grammar(kind="regex", text=r"(?s:.*)")))
    assert EOS in ids and CONTROL not in ids
    assert max(ids) < VOCAB_SIZE - 2
    assert CONTROL in allowed(state_of(Grammar(kind="lark", text="start: <|x|>")))


class TestThinking:
    TEXT = Thinking("<think>", "</think>", is_open=False)

    @pytest.mark.parametrize(
        ("thinking", "text", "expected"),
        [
            (TEXT, "7", True),
            (TEXT, '<think>\n{"<" 1 </thin\n</think>\n\n7', True),
            (TEXT, "<think>a</think>b", False),
            (TEXT, "<think>7", False),
            (TEXT, "a<think></think>7", False),
            (Thinking("<think>", "</think>", is_open=True), "hm\n</think>\n7", True),
            (Thinking("<think>", "</think>", is_open=True), "7", False),
        ],
    )
    def test_texts(self, thinking: Thinking, text: str, expected: bool) -> None:
        assert follows(Grammar(kind="regex", text="7", thinking=thinking), text) == expected

    def test_control_tokens(self) -> None:
        grammar = Grammar(kind="regex", text="7", thinking=Thinking(CONTROL, EOS, is_open=False))
        assert allowed(state_of(grammar)) == {CONTROL, *ids_of("7")}
        open_ = Grammar(kind="regex", text="7", thinking=Thinking("x", CONTROL, is_open=True))
        assert state_of(open_, [*ids_of("ab\n"), CONTROL, *ids_of("\n7")]).is_complete


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        (of_schema({"type": "strin"}), "^Invalid type: strin.$"),
        (of_schema({"not": {}}), "^Unimplemented keys"),
        (of_schema({"type": "integer", "minimum": 3, "maximum": 1}), "minimum"),
        (of_schema(3), "not an object"),
        (Grammar(kind="json_schema", text="{"), "not JSON"),
        (Grammar(kind="json_schema", text="[" * 50_000), "not JSON"),
        (Grammar(kind="regex", text="a(b"), "^invalid regex.*unclosed group.$"),
        (Grammar(kind="regex", text="a(?=b)"), "look-around"),
        (Grammar(kind="lark", text='start: "a"\nfoo bar'), r"^2\(5\)"),
        (Grammar(kind="lark", text="start: foo"), "unknown name"),
        (Grammar(kind="choice", text="[]"), "no choices"),
        (Grammar(kind="regex", text="a" * 300_000), "longer than 262144 bytes"),
    ],
)
def test_what_cannot_be_compiled(grammar: Grammar, problem: str) -> None:
    with pytest.raises(GrammarError, match=problem):
        compile_grammar(TOKENIZER, grammar)


def test_a_state_is_a_function_of_the_output() -> None:
    """What is sampled one by one and what is replayed at once lead to the same masks."""
    shared = compiled(of_schema(PERSON))
    output = ids_of('{"name": "Ada", "age": 36}')
    stepwise = GrammarState(shared)
    for end in range(len(output) + 1):
        stepwise.update(output[:end])
        replayed = GrammarState(shared)
        replayed.update(output[:end])
        assert stepwise.mask() == replayed.mask()
        assert stepwise.is_complete == replayed.is_complete == (end == len(output))


def test_an_output_outside_its_grammar_is_a_problem() -> None:
    state = state_of(of_schema(PERSON), ids_of("x"))
    assert state.problem is not None and "left its grammar" in state.problem
    assert not allowed(state) and not state.is_complete


def test_a_grammar_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MASK_S", -1.0)
    state = state_of(of_schema(PERSON))
    assert not allowed(state)
    assert state.problem == "The grammar takes too long to follow."


def test_a_grammar_that_explodes_on_the_way_is_a_problem() -> None:
    text = "|".join(f"[a-z]{{{i},{i + 50}}}x" for i in range(3000))
    state = state_of(Grammar(kind="regex", text=text))
    output: list[int] = []
    while allowed(state) and len(output) < 3000:
        output += ids_of("q")
        state.update(output)
    assert state.problem is not None and "cannot be followed" in state.problem


names = st.text('abé"\\ _', min_size=1, max_size=4)
SCALARS = (
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[a-c]{1,3}$"},
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 7.5},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["a", 1, None, {"b": [True]}]},
    {"const": "é"},
    {"type": "string", "format": "date"},
    {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "null"}]},
    {"type": ["boolean", "null"]},
)


def _object(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:num_required],
        "additionalProperties": False,
    }


schemas = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.builds(_object, st.dictionaries(names, inner, max_size=3), st.integers(0, 3))
        | st.builds(lambda s: {"type": "array", "items": s, "maxItems": 2}, inner)
        | st.builds(lambda i: {"$ref": f"#/$defs/{i}"}, st.integers(0, len(SCALARS) - 1))
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(schema=schemas, seed=st.integers(0, 2**32))
def test_random_tokens_give_valid_json(schema: dict[str, Any], seed: int) -> None:
    """A model that knows nothing, for every schema: what the masks let out is valid."""
    definitions = {str(i): scalar for i, scalar in enumerate(SCALARS)}
    schema = {"$defs": definitions, **_object({"v": schema}, 1)}
    state = state_of(of_schema(schema))
    rng = random.Random(seed)
    output: list[int] = []
    while not state.is_complete:
        ids = allowed(state)
        assert ids, (state.problem, text_of(output))
        output.append(rng.choice(sorted(ids - {EOS}) or [EOS]))
        if output[-1] == EOS:
            break
        state.update(output)
        assert len(output) < 2000
    text = text_of([i for i in output if i != EOS])
    jsonschema.validate(json.loads(text), schema)


def test_masks_behind_drafts_are_those_that_will_come() -> None:
    text = '{"a": [1, 2], "b": "x"}'
    state = state_of(of_schema({}))
    ids = ids_of(text)
    for start in (0, 3, 9):
        state.update(ids[:start])
        drafts = ids[start : start + 6]
        state.mask()
        for count in range(1, 7):
            alone = state_of(of_schema({}), ids[: start + count])
            assert state.mask_behind(drafts[:count]) == alone.mask()
    state.take_draft(ids[9])
    state.take_draft(ids[10])
    assert state.mask() == state_of(of_schema({}), ids[:11]).mask()


def test_a_draft_that_the_grammar_does_not_allow_has_nothing_behind_it() -> None:
    state = state_of(Grammar(kind="regex", text="xy+z"))
    assert any(state.mask_behind(ids_of("x")))
    assert not any(state.mask_behind(ids_of("xq")))
    assert state.problem is None and any(state.mask())
