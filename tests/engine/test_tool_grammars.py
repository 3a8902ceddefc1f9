"""What grammars of answers with tools promise: whatever they let out is calls that can be made.

Answers are random walks over the masks; read with the format's own parser and held against the
client's schema with jsonschema.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.messages import Grammar, Thinking
from protocol.tools.answer_grammar import AnswerRules, CallableTool, UnsupportedSchema
from protocol.tools.calls import CallArguments, CallBegin, Content, Tool, joined
from protocol.tools.formats import FORMATS, ToolFormat
from protocol.tools.json_answers import JsonAnswerParser
from protocol.tools.schemas import grammar_schema
from tests.engine.grammar_walks import SPECIAL, ids_of, text_of, walk
from tests.protocol.tools.schema_cases import SCHEMAS, Schema, enforced

NAMES = ("get", "get_weather", "get_weather_2", "now", "a-b")

# What leads a walk to where grammar and parser could disagree.
SNIPPETS = {
    ToolFormat.HERMES: (
        *("<tool_call>", "</tool_call>", '{"name": "get_w', '```json\n{"name": "', "\n", "```\n"),
        *('\n{"name": "get"', '[{"name":"now"', "<tools>", "<function_call>\n{", "<tool>", "```"),
        *("```\n{'name': 'get'", '{"name"  :  "get_weather"', "{'name': \"get\"", "]\n```", "\r\n"),
        *('{"arguments": {}, "name": "get"}', '{"name": "g\\u0065t"}', '{"name": "nowhere"}'),
        *('```é\n{"name": "get"', "\n```\n```json\n{", ',\n{"name": "', '"arguments": {'),
    ),
    ToolFormat.QWEN3_CODER: (
        *("<tool_call>", "</tool_call>", "<function=", "<function=get>", "<function=rm>", "\n\n"),
        *("<parameter=city>\n", "</parameter>", "\n</parameter>\n", "</function>", "<parameter=a>"),
        *("[1]", '{"a":1}', "null", "None", "5", " 5", "true", "True", "'x'", "[", "(1,)", "-0"),
    ),
    ToolFormat.CHATGLM3: (
        *("get", "now\n", "\nget_weather\n", "get \n```python\ntool_call(", "tool_call(", "\n"),
        *("<|assistant|>", "<|assistant|>get\n```\ntool_call(", "a=", ")\n```", "\\u0041", '"'),
        *("now\x0b\ntool_call(", "\nnow\n```é\ntool_call(", "1e999", "\t", "\r\n", "get\n\n\n"),
    ),
    ToolFormat.LLAMA3: (
        *("<|python_tag|>", "{", "\n{", ' {"name": "get"', "; ", "<|python_tag|>{", "\n\n"),
        '{"name": "get", "parameters": {}}',
    ),
    ToolFormat.QWEN_AGENT: (
        *("✿FUNCTION✿", "✿FUNCTION✿: get\n", "✿ARGS✿: {", "✿RETURN✿: a", "✿RESULT✿: b", "✿"),
        *("\n✿FUNCTION✿：now\n✿ARGS✿：{}", "\n✿RETURN✿", "✿FUNCTION✿: now✿ARGS✿"),
    ),
    ToolFormat.REACT: (
        *(
            "Action:",
            "\nAction: get\nAction Input: {",
            "\n action ：get\n",
            "Action:get",
            "Thought: ",
        ),
        *(
            "Thought:\n",
            "Final Answer:",
            "\nFinal Answer: x",
            "Observation:",
            "\n",
            "Action Input:",
        ),
        *("\nACTION\t: now\nACTION INPUT :{}", "\nAct\u0131on: now", "\nfinal an\u017fwer: x"),
        *("\x0b", "\u2028Action: get\n"),
    ),
}


@dataclass(frozen=True)
class Case:
    """An answer's rules, and all that is needed to read it."""

    format: ToolFormat
    rules: AnswerRules
    schemas: dict[str, Schema]

    def grammar(self, thinking: Thinking | None = None) -> Grammar:
        text = FORMATS[self.format].grammar(self.rules)
        return Grammar(kind="lark", text=text, thinking=thinking)

    def answer(self, rng: random.Random, thinking: Thinking | None = None) -> str | None:
        """A random one, None if it has not come to its end."""
        snippets = [ids_of(text, self.rules.special_tokens) for text in SNIPPETS[self.format]]
        num_free = rng.choice([20, 60, 120])
        ids, is_whole = walk(self.grammar(thinking), rng, snippets, num_free=num_free)
        return text_of(ids) if is_whole else None

    def read(self, answer: str) -> tuple[str, list[tuple[str, str]]]:
        """Content and calls; nothing is content behind a call."""
        parser = FORMATS[self.format].parser([entry.tool for entry in self.rules.tools])
        begun = parser.feed("Thought:") if self.rules.continues_line else []
        if self.rules.content_schema is not None and self.format is not ToolFormat.LLAMA3:
            parser = JsonAnswerParser(parser)
        content, calls = "", []
        for event in joined(begun + parser.feed(answer) + parser.flush()):
            if isinstance(event, CallBegin):
                calls.append((event.name, ""))
            elif isinstance(event, CallArguments):
                calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
            elif isinstance(event, Content):
                assert not calls, (answer, event)
                content += event.text
        return content, calls

    def check_calls(self, calls: list[tuple[str, str]], answer: str) -> None:
        assert len(calls) <= 1 or self.rules.allows_parallel, answer
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), self.schemas[name])


def case_of(
    tool_format: ToolFormat,
    rng: random.Random,
    mode: str,
    keys: Sequence[str] = tuple(SCHEMAS),
    **fields: object,
) -> Case:
    """Some tools with schemas of `keys`, and rules; only such as the format can be held to."""
    while True:
        names = rng.sample(NAMES, 1 if mode == "named" else rng.randint(1, 3))
        chosen = {name: SCHEMAS[rng.choice(keys)] for name in names}
        tools = {name: Tool(name, "", schema) for name, schema in chosen.items()}
        read = {name: grammar_schema(tool) for name, tool in tools.items()}
        markers = FORMATS[tool_format].markers if rng.random() < 0.5 else ()
        rules = AnswerRules(
            tuple(CallableTool(tool, read[name].schema) for name, tool in tools.items()),
            is_required=mode in ("required", "named"),
            allows_parallel=mode != "named" and rng.random() < 0.5,
            special_tokens={marker: SPECIAL[marker] for marker in markers},
            continues_line=tool_format is ToolFormat.REACT and rng.random() < 0.5,
            **fields,  # type: ignore[arg-type]
        )
        try:
            FORMATS[tool_format].grammar(rules)
        except UnsupportedSchema:
            continue
        schemas = {name: enforced(chosen[name], read[name].unenforced) for name in names}
        return Case(tool_format, rules, schemas)


seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("mode", ["required", "named"])
@pytest.mark.parametrize("tool_format", ToolFormat)
@settings(max_examples=40)
@given(seed=seeds)
def test_a_call_that_is_required_can_be_made(tool_format: ToolFormat, mode: str, seed: int) -> None:
    rng = random.Random(seed)
    case = case_of(tool_format, rng, mode)
    answer = case.answer(rng)
    if answer is None:
        return
    content, calls = case.read(answer)
    assert calls
    assert not content or (tool_format is ToolFormat.REACT and "\n" not in content)
    case.check_calls(calls, answer)


# the formats that write each argument by itself; and what the first cannot be held to
ARGUMENT_BY_ARGUMENT = [
    (tool_format, key)
    for tool_format in (ToolFormat.QWEN3_CODER, ToolFormat.CHATGLM3)
    for key in SCHEMAS
    if key not in ("alternatives", "by pattern", "names with blanks")
]


@pytest.mark.parametrize(("tool_format", "key"), ARGUMENT_BY_ARGUMENT)
@settings(max_examples=12)
@given(seed=seeds)
def test_arguments_are_what_each_schema_says(tool_format: ToolFormat, key: str, seed: int) -> None:
    rng = random.Random(seed)
    case = case_of(tool_format, rng, "named", [key])
    answer = case.answer(rng)
    if answer is not None:
        case.check_calls(case.read(answer)[1], answer)


@pytest.mark.parametrize("tool_format", ToolFormat)
@settings(max_examples=60)
@given(seed=seeds)
def test_what_is_taken_for_a_call_is_one(tool_format: ToolFormat, seed: int) -> None:
    rng = random.Random(seed)
    case = case_of(tool_format, rng, "auto")
    answer = case.answer(rng)
    if answer is not None:
        case.check_calls(case.read(answer)[1], answer)


CONTENT = {
    "type": "object",
    "properties": {"say": {"type": "string"}, "names": {"type": "array", "maxItems": 2}},
    "required": ["say"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("tool_format", ToolFormat)
@settings(max_examples=40)
@given(seed=seeds)
def test_an_answer_is_json_or_calls(tool_format: ToolFormat, seed: int) -> None:
    rng = random.Random(seed)
    case = case_of(tool_format, rng, "auto", content_schema=CONTENT)
    answer = case.answer(rng)
    if answer is None:
        return
    content, calls = case.read(answer)
    case.check_calls(calls, answer)
    if not calls:
        jsonschema.validate(json.loads(content), CONTENT)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("tool_format", ToolFormat)
@settings(max_examples=20)
@given(seed=seeds)
def test_thinking_calls_nothing(tool_format: ToolFormat, is_open: bool, seed: int) -> None:
    rng = random.Random(seed)
    opening = None if is_open else "<think>"
    case = case_of(tool_format, rng, rng.choice(["auto", "required"]), thinking_opening=opening)
    answer = case.answer(rng, Thinking("<think>", "</think>", is_open=is_open))
    if answer is None:
        return
    if is_open or answer.startswith("<think>"):
        answer = answer.partition("</think>")[2]
    _, calls = case.read(answer)
    assert calls or not case.rules.is_required
    case.check_calls(calls, answer)


@pytest.mark.parametrize("mode", ["required", "auto"])
@pytest.mark.parametrize("tool_format", ToolFormat)
def test_walks_come_to_their_ends_and_call(tool_format: ToolFormat, mode: str) -> None:
    """Or the tests above would say nothing."""
    num_whole = num_calls = 0
    for seed in range(30):
        rng = random.Random(seed)
        case = case_of(tool_format, rng, mode)
        answer = case.answer(rng)
        num_whole += answer is not None
        num_calls += answer is not None and bool(case.read(answer)[1])
    assert num_whole > 15
    assert num_calls > (15 if mode == "required" else 1)
