"""engine/core.py with grammars: waiting for them, ending by them, and what they never let out."""

import json
import re
from typing import Any

import jsonschema
import pytest

from engine.core import Engine
from engine.errors import RequestRejected
from engine.messages import Event, Fault, Finished, Grammar, TokenEvent
from tests.engine.grammars import EOS, InlineGrammars, ids_of, text_of
from tests.engine.random_runner import random_engine, request_of

SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "kind": {"enum": ["a", "é", None]},
        "list": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 3},
    },
    "required": ["ok", "kind", "list"],
    "additionalProperties": False,
}
JSON = Grammar(kind="json_schema", text=json.dumps(SCHEMA))
WORD = Grammar(kind="choice", text='["yes", "no"]')
BROKEN = Grammar(kind="regex", text="a(b")


def run(engine: Engine) -> tuple[dict[str, list[int]], dict[str, Finished]]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return collect(events)


def collect(events: list[Event]) -> tuple[dict[str, list[int]], dict[str, Finished]]:
    outputs: dict[str, list[int]] = {}
    finished: dict[str, Finished] = {}
    for event in events:
        if isinstance(event, TokenEvent):
            outputs.setdefault(event.id, []).extend(event.token_ids)
        else:
            assert event.id not in finished
            finished[event.id] = event
    return outputs, finished


def test_every_output_is_valid_and_ends_with_stop() -> None:
    engine = random_engine()
    for i in range(12):
        engine.add(request_of(str(i), JSON, seed=i, temperature=(0.0, 1.0, 2.0)[i % 3]))
    outputs, finished = run(engine)
    assert {event.reason for event in finished.values()} == {"stop"}
    for output in outputs.values():
        jsonschema.validate(json.loads(text_of(output)), SCHEMA)
    assert len({text_of(output) for output in outputs.values()}) > 3


def test_a_grammar_that_can_only_stop_costs_no_further_token() -> None:
    engine = random_engine()
    engine.add(request_of("a", Grammar(kind="regex", text="xy")))
    outputs, finished = run(engine)
    assert outputs["a"] == ids_of("xy")
    assert finished["a"].reason == "stop" and finished["a"].stop_token_id is None
    assert finished["a"].num_output_tokens == 2


def test_the_end_of_the_limit_is_length() -> None:
    engine = random_engine()
    engine.add(request_of("a", Grammar(kind="regex", text="xyz"), max_tokens=2))
    assert run(engine)[1]["a"].reason == "length"


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 2.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.0, "min_p": 1.0},
        {"logit_bias": {120: 100.0, EOS: 100.0, **dict.fromkeys(ids_of("yesno"), -100.0)}},
        {"repetition_penalty": 5.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"min_tokens": 50},
        {"min_tokens": 50, "stop_token_ids": (120,)},
        {"logprobs": 3},
        {"ignore_eos": True},
    ],
    ids=lambda sampling: "-".join(sampling),
)
def test_no_parameter_gets_past_a_grammar(sampling: dict[str, Any]) -> None:
    engine = random_engine()
    for i in range(6):
        engine.add(request_of(str(i), WORD, seed=i, **sampling))
    engine.add(request_of("free", None, max_tokens=5, ignore_eos=True))
    outputs, finished = run(engine)
    assert len(outputs.pop("free")) == 5
    assert {text_of(output) for output in outputs.values()} <= {"yes", "no"}
    assert {finished[request_id].reason for request_id in outputs} == {"stop"}


def test_min_tokens_holds_where_the_grammar_goes_on() -> None:
    engine = random_engine()
    engine.add(request_of("a", Grammar(kind="regex", text="[a-z]*"), min_tokens=40))
    outputs, _ = run(engine)
    assert len(outputs["a"]) >= 40
    assert re.fullmatch("[a-z]*", text_of(outputs["a"]))


def test_a_stop_token_of_the_request_ends_the_output_where_it_is_allowed() -> None:
    engine = random_engine()
    engine.add(request_of("a", Grammar(kind="regex", text="xy+"), stop_token_ids=tuple(b"y")))
    outputs, finished = run(engine)
    assert text_of(outputs["a"]) == "x" and finished["a"].stop_token_id == ord("y")


def test_logprobs_are_those_of_the_model() -> None:
    """Not of what the grammar leaves: the first token of a fixed text is no certainty."""
    engine = random_engine()
    engine.add(request_of("a", Grammar(kind="regex", text="x"), logprobs=2))
    events = [event for event in engine.step() if isinstance(event, TokenEvent)]
    assert events[0].logprobs is not None
    assert events[0].logprobs[0].logprob < -0.5
    assert events[0].logprobs[0].top[0][1] >= events[0].logprobs[0].logprob


def test_preemption_changes_nothing() -> None:
    def outputs_of(num_blocks: int) -> tuple[dict[str, list[int]], int]:
        engine = random_engine(num_blocks=num_blocks)
        for i in range(8):
            engine.add(request_of(str(i), JSON, seed=i))
        return run(engine)[0], engine.scheduler.num_preemptions

    calm, num_calm = outputs_of(600)
    tight, num_tight = outputs_of(36)
    assert num_calm == 0 and num_tight > 0
    assert calm == tight


def test_choices_share_one_compilation_but_no_state() -> None:
    grammars = InlineGrammars()
    engine = random_engine(grammars)
    for i in range(4):
        engine.add(request_of(f"a-{i}", JSON, seed=i))
    outputs, _ = run(engine)
    assert len({text_of(output) for output in outputs.values()}) > 1


class TestWaiting:
    def test_it_is_scheduled_once_its_grammar_is_there(self) -> None:
        grammars = InlineGrammars(is_lazy=True)
        engine = random_engine(grammars)
        engine.add(request_of("a", WORD))
        assert engine.is_compiling and not engine.has_work
        assert engine.stats().num_waiting == 1
        assert engine.admit_compiled() == []
        engine.add(request_of("free", None, max_tokens=3, ignore_eos=True))
        outputs, finished = run(engine)  # the others do not wait with it
        assert list(finished) == ["free"] and "a" not in outputs
        grammars.finish()
        assert engine.admit_compiled() == [] and not engine.is_compiling
        assert run(engine)[1]["a"].reason == "stop"

    def test_it_keeps_its_place(self) -> None:
        grammars = InlineGrammars(is_lazy=True)
        engine = random_engine(grammars)
        engine.add(request_of("first", WORD))
        engine.add(request_of("second", None))
        grammars.finish()
        engine.admit_compiled()
        assert [sequence.id for sequence in engine.scheduler.waiting] == ["first", "second"]

    def test_abort(self) -> None:
        grammars = InlineGrammars(is_lazy=True)
        engine = random_engine(grammars)
        engine.add(request_of("a", WORD))
        [event] = engine.abort("a")
        assert isinstance(event, Finished) and event.reason == "abort"
        grammars.finish()
        assert engine.admit_compiled() == [] and not engine.is_compiling
        assert engine.stats().num_waiting == 0

    def test_a_grammar_that_does_not_compile(self) -> None:
        grammars = InlineGrammars(is_lazy=True)
        engine = random_engine(grammars)
        engine.add(request_of("a", BROKEN))
        grammars.finish()
        [event] = engine.admit_compiled()
        assert isinstance(event, Finished) and event.fault is not None
        assert event.reason == "error" and event.fault.code == "invalid_grammar"
        assert "unclosed group" in event.fault.message
        assert not engine.scheduler.held


class TestRejected:
    def fault_of(self, engine: Engine, grammar: Grammar) -> Fault:
        with pytest.raises(RequestRejected) as caught:
            engine.add(request_of("a", grammar))
        assert not engine.scheduler.held and not engine.is_compiling
        return caught.value.fault

    def test_a_grammar_that_is_known_to_be_broken(self) -> None:
        assert self.fault_of(random_engine(), BROKEN).code == "invalid_grammar"

    def test_no_compiler(self) -> None:
        engine = random_engine()
        engine.grammars = None
        assert self.fault_of(engine, WORD).message == "This engine takes no grammars."


def test_a_dead_end_fails_that_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.grammar._MASK_S", -1.0)
    engine = random_engine()
    engine.add(request_of("a", WORD))
    engine.add(request_of("free", None, max_tokens=3, ignore_eos=True))
    outputs, finished = run(engine)
    assert finished["a"].fault == Fault("invalid_grammar", "The grammar takes too long to follow.")
    assert finished["free"].reason == "length" and len(outputs["free"]) == 3
